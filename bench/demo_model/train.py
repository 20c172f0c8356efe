"""Trains the model: python -m bench.demo_model.train --size big --minutes 50 --work FOLDER.

The schedule follows the clock (or --steps): warm up, stay, and fall linearly to zero over the last part. A checkpoint is
written every few minutes, and one more before the fall, from which the fall can be repeated with other shares.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from bench.demo_model import checkpoint, data, kinds
from bench.demo_model.checkpoint import Place
from bench.demo_model.data import Batch
from bench.demo_model.model import SHAPES, Llama
from bench.demo_model.muon import Muon
from bench.demo_model.tokenizer import END_OF_TEXT

WARM_UP, FALL = 0.01, 0.35  # parts of the whole


def height(progress: float) -> float:
    """The learning rate's share of its peak, `progress` running from 0 to 1."""
    return max(0.0, min(1.0, (progress + 0.001) / WARM_UP, (1 - progress) / FALL))


def scores_of(model: Llama, batch: Batch) -> Tensor:
    """Logits where something is learnt, and nowhere else: the head is a fifth of the work."""
    with torch.autocast("cpu", torch.bfloat16):
        return model.logits(model(batch.ids).flatten(0, 1)[batch.where]).float()


def loss_of(model: Llama, batch: Batch, teacher: Llama | None = None) -> Tensor:
    """Weighted sum of cross entropies; with a teacher, half of it is the divergence from the teacher's distribution.

    A draft is to guess what the teacher will say, mistakes included, rather than what is right.
    """
    logits = scores_of(model, batch)
    loss = F.cross_entropy(logits, batch.targets, reduction="none")
    if teacher is not None:
        with torch.no_grad():
            wanted = scores_of(teacher, batch).log_softmax(-1)
        loss = 0.5 * loss + 0.5 * F.kl_div(logits.log_softmax(-1), wanted, log_target=True, reduction="none").sum(-1)
    return (loss * batch.weights).sum()


@torch.no_grad()
def forced_accuracy(model: Llama, tokenizer: Tokenizer, pad: int, count: int) -> dict[str, float]:
    """Share of held-out answers whose every token is the likeliest given the ones before: greedy decoding would write them.

    An answer that is right but not the written one counts as wrong here, so this is a floor.
    """
    rng = random.Random(12345)
    found = {}
    for kind in kinds.GRADED:
        docs = data.encode([kinds.draw(kind, rng, True) for _ in range(count)], tokenizer)
        docs = [data.Document(d.kind, d.ids, last_answer(d.learnt)) for d in docs]
        wrong_documents = 0
        for batch in data.batches(docs, pad):
            choice = scores_of(model, batch).argmax(-1)
            wrong = (choice != batch.targets) & (batch.weights > 0)
            wrong_documents += (batch.where[wrong] // batch.ids.shape[1]).unique().numel()
        found[kind] = 1 - wrong_documents / count
    return found


def last_answer(learnt: list[bool]) -> list[bool]:
    """The same marks, for the last learnt stretch only."""
    place = len(learnt) - 1
    while place >= 0 and learnt[place]:
        place -= 1
    return [False] * (place + 1) + learnt[place + 1 :]


class Trainer:
    """A model, its optimizers, and where they are in the run."""

    def __init__(self, size: str, tokenizer: Tokenizer, muon_rate: float, adam_rate: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.tokenizer = tokenizer
        self.model = Llama(SHAPES[size])
        self.pad = tokenizer.token_to_id(END_OF_TEXT)
        named = list(self.model.named_parameters())
        self.muon = Muon([p for name, p in named if "_proj" in name])
        self.adam = torch.optim.AdamW([p for name, p in named if "_proj" not in name], betas=(0.9, 0.98), weight_decay=0.0)
        self.muon_rate, self.adam_rate = muon_rate, adam_rate
        self.place = Place(size)
        self.teacher: Llama | None = None

    def step(self, groups: list[Batch], rate: float) -> float:
        """One step over these batches and those of the other workers; returns the mean loss."""
        sums = torch.zeros(3)  # of weights, of losses, of tokens
        for batch in groups:
            loss = loss_of(self.model, batch, self.teacher)
            loss.backward()
            sums += torch.tensor([float(batch.weights.sum()), loss.item(), batch.ids.numel()])
        gradients = [p.grad for p in self.model.parameters()]
        flat = torch.cat([sums, *(gradient.flatten() for gradient in gradients)])
        if dist.is_initialized():
            dist.all_reduce(flat)
        sums, values = flat[:3], flat[3:] / flat[0]
        values *= min(1.0, 1.0 / float(values.norm()))
        for gradient, part in zip(gradients, values.split([gradient.numel() for gradient in gradients])):
            gradient.copy_(part.view_as(gradient))
        for group in self.adam.param_groups:
            group["lr"] = rate * self.adam_rate
        self.adam.step()
        self.muon.step(rate * self.muon_rate)
        self.model.zero_grad(set_to_none=True)
        self.place.step += 1
        self.place.tokens += int(sums[2])
        return float(sums[1] / sums[0])

    def save(self, path: Path, progress: float) -> None:
        self.place.progress = progress
        checkpoint.save(path, self.place, self.model, self.muon, self.adam)

    def load(self, path: Path) -> None:
        self.place = checkpoint.load(path, self.model, self.muon, self.adam)


def report(work: Path, line: str) -> None:
    """One line to the terminal and to the log."""
    print(line, flush=True)
    with (work / "train.log").open("a") as log:
        log.write(line + "\n")


def agreed(progress: float) -> float:
    """The first worker's clock counts, so that all take the same steps."""
    told = torch.tensor([progress], dtype=torch.float64)
    if dist.is_initialized():
        dist.broadcast(told, 0)
    return float(told)


def run(options: argparse.Namespace, worker: int) -> None:
    """The whole run, from `--start` to 1; the first worker also writes and reports."""
    work, first = Path(options.work), worker == 0
    tokenizer = Tokenizer.from_file(options.tokenizer)
    trainer = Trainer(options.size, tokenizer, options.muon_rate, options.adam_rate, options.seed)
    if options.resume:
        trainer.load(Path(options.resume))
    if options.teacher:
        trainer.teacher = checkpoint.load_model(Path(options.teacher))
    # A resumed run goes on with text not read before, and each worker has its own.
    stream = data.Stream(options.seed + worker, tokenizer, first_part=trainer.place.step * 1000)
    began = saved = examined = time.monotonic()
    first_step, fell, recent = trainer.place.step, False, []
    while True:
        elapsed = time.monotonic() - began
        done = (trainer.place.step - first_step) / options.steps if options.steps else elapsed / (options.minutes * 60)
        progress = agreed(options.start + (1 - options.start) * done)
        if progress >= 1:
            break
        stage = "early" if progress < options.early else "main" if progress < 1 - FALL else "late"
        recent.append(trainer.step(stream.take(options.batch // options.workers, stage), height(progress)))
        if not first:
            continue
        now = time.monotonic()
        if trainer.place.step % 20 == 0:
            report(
                work,
                f"step {trainer.place.step} progress {progress:.3f} loss {sum(recent) / len(recent):.4f} "
                f"tokens {trainer.place.tokens / 1e6:.2f}M seconds {now - began:.0f}",
            )
            recent = []
        if now - saved > options.save_every * 60:
            trainer.save(work / "latest.safetensors", progress)
            saved = now
        if options.start < 1 - FALL < progress and not fell:
            trainer.save(work / "before_fall.safetensors", progress)
            fell = True
        if now - examined > options.examine_every * 60:
            report(work, standing(trainer, 40))
            examined = time.monotonic()
    if first:
        trainer.save(work / "final.safetensors", 1.0)
        report(work, standing(trainer, 200))


def standing(trainer: Trainer, count: int) -> str:
    """A line of how each kind stands."""
    found = forced_accuracy(trainer.model, trainer.tokenizer, trainer.pad, count)
    return "held out: " + " ".join(f"{kind} {share:.3f}" for kind, share in found.items())


def work_as(worker: int, options: argparse.Namespace, meeting: str) -> None:
    """One worker's process. One thread each: threads that meet at every operation wait for whichever of them lost its core."""
    torch.set_num_threads(options.threads)
    if options.workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=worker, world_size=options.workers)
    run(options, worker)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--size", choices=list(SHAPES), default="big")
    parser.add_argument("--tokenizer", default="quire/demo_model/tokenizer.json")
    parser.add_argument("--work", required=True, help="folder for checkpoints and the log")
    parser.add_argument("--minutes", type=float, default=50)
    parser.add_argument("--steps", type=int, default=0, help="count steps instead of minutes")
    parser.add_argument("--batch", type=int, default=12000, help="padded tokens in a step, at least")
    parser.add_argument("--early", type=float, default=0.12, help="part of the run with short copies")
    parser.add_argument("--start", type=float, default=0.0, help="where on the schedule to begin")
    parser.add_argument("--resume", help="a checkpoint to go on from")
    parser.add_argument("--teacher", help="a checkpoint of a larger model to imitate")
    parser.add_argument("--muon-rate", type=float, default=0.02)
    parser.add_argument("--adam-rate", type=float, default=0.004)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes that share each step")
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--save-every", type=float, default=3, help="minutes")
    parser.add_argument("--examine-every", type=float, default=5, help="minutes")
    options = parser.parse_args()
    Path(options.work).mkdir(parents=True, exist_ok=True)
    if options.workers == 1:
        work_as(0, options, "")
        return
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work_as, args=(options, f"{folder}/meeting"), nprocs=options.workers)


if __name__ == "__main__":
    main()

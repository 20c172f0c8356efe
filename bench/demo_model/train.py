"""Trains the model: python -m bench.demo_model.train --size big --minutes 50 --work FOLDER.

The schedule follows the clock (or --steps): warm up, stay, and fall linearly to zero over the last part. A checkpoint is
written every few minutes, and one more before the fall, from which the fall can be repeated with other shares.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
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
        self.model = Llama(SHAPES[size])
        self.pad = tokenizer.token_to_id(END_OF_TEXT)
        named = list(self.model.named_parameters())
        self.muon = Muon([p for name, p in named if "_proj" in name])
        self.adam = torch.optim.AdamW([p for name, p in named if "_proj" not in name], betas=(0.9, 0.98), weight_decay=0.0)
        self.muon_rate, self.adam_rate = muon_rate, adam_rate
        self.place = Place(size)
        self.teacher: Llama | None = None

    def step(self, groups: list[Batch], rate: float) -> float:
        """One step over these batches; returns the mean loss."""
        total = sum(float(batch.weights.sum()) for batch in groups)
        loss_sum = 0.0
        for batch in groups:
            loss = loss_of(self.model, batch, self.teacher) / total
            loss.backward()
            loss_sum += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.adam.param_groups:
            group["lr"] = rate * self.adam_rate
        self.adam.step()
        self.muon.step(rate * self.muon_rate)
        self.model.zero_grad(set_to_none=True)
        self.place.step += 1
        self.place.tokens += sum(batch.ids.numel() for batch in groups)
        return loss_sum

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


def run(options: argparse.Namespace) -> None:
    """The whole run, from `--start` to 1."""
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(options.tokenizer)
    trainer = Trainer(options.size, tokenizer, options.muon_rate, options.adam_rate, options.seed)
    if options.resume:
        trainer.load(Path(options.resume))
    if options.teacher:
        trainer.teacher = checkpoint.load_model(Path(options.teacher))
    # A resumed run goes on with text not read before.
    stream = data.Stream(options.seed, tokenizer, first_part=trainer.place.step * 1000)
    began = saved = examined = time.monotonic()
    first_step, fell, recent = trainer.place.step, False, []
    while True:
        elapsed = time.monotonic() - began
        done = (trainer.place.step - first_step) / options.steps if options.steps else elapsed / (options.minutes * 60)
        progress = options.start + (1 - options.start) * done
        if progress >= 1:
            break
        stage = "early" if progress < options.early else "main"
        recent.append(trainer.step(stream.take(options.batch, stage), height(progress)))
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
            found = forced_accuracy(trainer.model, tokenizer, trainer.pad, 60)
            report(work, "held out: " + " ".join(f"{kind} {share:.2f}" for kind, share in found.items()))
            examined = time.monotonic()
    trainer.save(work / "final.safetensors", 1.0)
    report(work, "held out: " + " ".join(f"{k} {v:.3f}" for k, v in forced_accuracy(trainer.model, tokenizer, trainer.pad, 200).items()))


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
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=float, default=3, help="minutes")
    parser.add_argument("--examine-every", type=float, default=5, help="minutes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run(options)


if __name__ == "__main__":
    main()

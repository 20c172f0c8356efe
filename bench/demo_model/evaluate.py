"""Examines a model on held-out prompts: python -m bench.demo_model.evaluate --model quire/demo_model.

Every kind is answered by greedy decoding with transformers, and an answer is right only if it is exactly one of the accepted
ones. In the thinking kind the thoughts may be any, but must be there, and the answer after them must be exact.
Exits with 1 when any kind stays under the floor.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bench.demo_model import kinds
from bench.demo_model.example import Example

FLOOR = 0.95
SEED = 2024

# What is examined besides the kinds themselves.
EXTRA: dict[str, Callable[[random.Random], Example]] = {
    "chat": lambda rng: kinds.chained(rng, rng.choice([2, 3]), True),
    "idle_thinking": lambda rng: kinds.idle_thinking(rng, True),
    "tool_session": lambda rng: kinds.tool_session(rng, True),
}
EXAMINED = [*kinds.GRADED, *EXTRA]
NO_FLOOR = {"arithmetic_three_digits"}  # more than it has to know: shown, not required


@dataclass
class Score:
    """How one kind fared."""

    right: int = 0
    asked: int = 0
    wrong: list[tuple[str, str, str]] = field(default_factory=list)  # prompt, expected, answer

    @property
    def share(self) -> float:
        return self.right / max(1, self.asked)


def questions(kind: str, count: int, seed: int = SEED) -> list[Example]:
    """Held-out examples of a kind, the same ones each time."""
    rng = random.Random(f"{seed}/{kind}")
    draw = EXTRA.get(kind) or (lambda r: kinds.draw(kind, r, True))
    return [draw(rng) for _ in range(count)]


def is_right(example: Example, answer: str) -> bool:
    """Whether this answer counts."""
    if example.thinking:
        if not answer.startswith("<think>\n") or "</think>\n\n" not in answer:
            return False
        answer = answer.split("</think>\n\n", 1)[1]
    return answer in example.accepted


@torch.no_grad()
def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], new_tokens: int, rows: int = 128) -> list[str]:
    """Greedy continuations up to the end of the turn, prompts of like length decoded together."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found = [""] * len(prompts)
    tokenizer.padding_side = "left"
    for first in range(0, len(order), rows):
        group = order[first : first + rows]
        inputs = tokenizer(
            [prompts[i] for i in group], return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False
        )
        written = model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens)[:, inputs.input_ids.shape[1] :]
        for i, text in zip(group, tokenizer.batch_decode(written, skip_special_tokens=True)):
            found[i] = text
    return found


def examine(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: list[str], count: int) -> dict[str, Score]:
    """Every kind's score."""
    scores = {}
    for name in names:
        score = scores[name] = Score()
        asked = questions(name, count)
        longest = max(len(tokenizer(example.turns[-1].said()).input_ids) for example in asked)
        for example, answer in zip(asked, answers(model, tokenizer, [e.prompt() for e in asked], longest + 24)):
            score.asked += 1
            if is_right(example, answer):
                score.right += 1
            else:
                score.wrong.append((example.turns[-2].content, example.turns[-1].said(), answer))
    return scores


def passes(kind: str, score: Score) -> bool:
    return kind in NO_FLOOR or score.share >= FLOOR


def main() -> None:
    parser = argparse.ArgumentParser(description="Examine the demo model on held-out prompts.")
    parser.add_argument("--model", default="quire/demo_model")
    parser.add_argument("--n", type=int, default=200, help="prompts of each kind")
    parser.add_argument("--kinds", nargs="*", default=EXAMINED, choices=EXAMINED)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--show", type=int, default=0, help="wrong answers to show of each kind")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).eval()
    scores = examine(model, tokenizer, options.kinds, options.n)
    passed = all(passes(kind, score) for kind, score in scores.items())
    if options.json:
        shares = {kind: {"right": score.right, "asked": score.asked, "share": score.share} for kind, score in scores.items()}
        print(json.dumps({"model": options.model, "dtype": options.dtype, "floor": FLOOR, "passed": passed, "kinds": shares}))
    else:
        for kind, score in scores.items():
            verdict = "  (no floor)" if kind in NO_FLOOR else "" if passes(kind, score) else "  below the floor"
            print(f"{kind:24} {score.right:5} of {score.asked:5}  {100 * score.share:6.2f} %{verdict}")
            for prompt, expected, answer in score.wrong[: options.show]:
                print(f"    {prompt!r}\n      expected {expected!r}\n      answered {answer!r}")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()

"""From examples to batches: what share each kind has, tokens and weights of a document, padding little.

The stream of documents follows from the seed alone.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from bench.demo_model import kinds
from bench.demo_model.example import Example, pieces_of
from bench.demo_model.kinds import repeat
from bench.demo_model.tokenizer import ADDED, END_OF_TEXT, VOCAB_SIZE

WIDTHS = [24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1104]
LONGEST = WIDTHS[-1]  # tokens; the few longer documents are dropped
BATCH_TOKENS = 2048  # padded tokens in a batch, about what the caches hold


@dataclass(frozen=True)
class Document:
    """Token ids, and which of them are learnt."""

    kind: str
    ids: list[int]
    learnt: list[bool]


@dataclass(frozen=True)
class Batch:
    """Padded ids (rows, time); `where` are flat places whose next token is learnt, with that token and its weight.

    Places of weight zero at the end round their number up.
    """

    ids: Tensor
    where: Tensor
    targets: Tensor
    weights: Tensor


def short_repeat(rng: random.Random) -> Example:
    while True:
        example = repeat.sample(rng, 10)
        if not example.for_test():
            return example


def train_kind(kind: str) -> Callable[[random.Random], Example]:
    return lambda rng: kinds.draw(kind, rng, False)


# What a document may be; "tokens" is a copy of random tokens, made below without text.
SOURCES: dict[str, Callable[[random.Random], Example]] = {
    **{kind: train_kind(kind) for kind in kinds.KINDS},
    "short_repeat": short_repeat,
    "idle_thinking": lambda rng: kinds.idle_thinking(rng, False),
    "chat": lambda rng: kinds.chained(rng, rng.choice([2, 2, 3]), False),
    "long_chat": lambda rng: kinds.chained(rng, rng.randint(5, 14), False),
    "tool_session": lambda rng: kinds.tool_session(rng, False),
    "word_problem": lambda rng: kinds.direct_word_problem(rng, False),
}

# Shares of documents. Copying comes first and short: the induction it needs then serves JSON and tool calls as well.
EARLY = {
    "tokens": 25,
    "short_repeat": 25,
    "repeat": 8,
    "small_talk": 9,
    "arithmetic": 14,
    "counting": 5,
    "spelling": 7,
    "json": 5,
    "tool_call": 2,
    "thinking": 5,
    "plain": 2,
    "chat": 2,
}
MAIN = {
    "tokens": 3,
    "repeat": 26,
    "small_talk": 10,
    "arithmetic": 20,
    "arithmetic_three_digits": 7,
    "counting": 7,
    "spelling": 14,
    "json": 7,
    "tool_call": 6,
    "tool_result": 2,
    "tool_session": 1.5,
    "thinking": 14,
    "idle_thinking": 2,
    "chat": 5,
    "long_chat": 0.7,
    "plain": 3,
    "word_problem": 1,
}
# While the rate falls: more of what is still being learnt by then.
LATE = MAIN | {
    "tokens": 0.5,
    "repeat": 32,
    "small_talk": 11,
    "arithmetic": 48,
    "spelling": 28,
    "thinking": 30,
    "tool_call": 8,
    "chat": 3,
    "plain": 2,
}
STAGES = {"early": EARLY, "main": MAIN, "late": LATE}


def token_copy(rng: random.Random, end: int) -> Document:
    """Random tokens, a line end, and the same again; learnt is the second time."""
    length = rng.randint(2, rng.choice([6, 16, 40]))
    drawn = [rng.randrange(VOCAB_SIZE - len(ADDED)) for _ in range(length)]
    ids = drawn + [end] + drawn + [end]
    return Document("tokens", ids, [False] * (length + 1) + [True] * (length + 1))


def encode(examples: list[Example], tokenizer: Tokenizer) -> list[Document]:
    """Each piece is tokenized by itself, as it is when a server renders the prompt and the model adds the answer."""
    pieces = [pieces_of(example) for example in examples]
    encodings = iter(tokenizer.encode_batch([text for own in pieces for text, _ in own], add_special_tokens=False))
    documents = []
    for example, own in zip(examples, pieces):
        ids: list[int] = []
        learnt: list[bool] = []
        for _, learn in own:
            piece = next(encodings).ids
            ids += piece
            learnt += [learn] * len(piece)
        documents.append(Document(example.kind, ids, learnt))
    return documents


def documents(seed: int, part: int, count: int, stage: str, tokenizer: Tokenizer) -> list[Document]:
    """The documents of one part of the stream."""
    rng = random.Random(f"{seed}/{part}")
    shares = STAGES[stage]
    end = tokenizer.token_to_id(END_OF_TEXT)
    examples, made = [], []
    for name in rng.choices(list(shares), list(shares.values()), k=count):
        if name == "tokens":
            made.append(token_copy(rng, end))
            continue
        example = SOURCES[name](rng)
        if example.turns and example.turns[0].role != "system" and rng.random() < 0.15:
            example = kinds.with_system(example, rng)
        examples.append(dataclasses.replace(example, kind=name))
    made += encode(examples, tokenizer)
    # Half of the plain texts begin without a mark, as bare prompts do.
    made = [Document(d.kind, d.ids[1:], d.learnt[1:]) if d.kind == "plain" and rng.random() < 0.5 else d for d in made]
    return [document for document in made if len(document.ids) <= LONGEST]


def width_of(document: Document) -> int:
    return next(width for width in WIDTHS if width >= len(document.ids))


def rows_of(width: int) -> int:
    """How many documents of a width make a full batch."""
    return -(-BATCH_TOKENS // width)


class Stream:
    """Endless full batches of a few fixed shapes: the CPU's matrix kernels are compiled anew for every shape they meet."""

    def __init__(self, seed: int, tokenizer: Tokenizer, first_part: int = 0) -> None:
        self.seed, self.tokenizer, self.part = seed, tokenizer, first_part
        self.pad = tokenizer.token_to_id(END_OF_TEXT)
        self.waiting: dict[int, list[Document]] = {width: [] for width in WIDTHS}

    def take(self, tokens: int, stage: str) -> list[Batch]:
        """Batches of at least so many padded tokens together."""
        taken: list[Batch] = []
        while sum(batch.ids.numel() for batch in taken) < tokens:
            for document in documents(self.seed, self.part, 32, stage, self.tokenizer):
                width = width_of(document)
                group = self.waiting[width]
                group.append(document)
                if len(group) == rows_of(width):
                    taken.append(collate(group, width, self.pad))
                    group.clear()
            self.part += 1
        return taken


def batches(docs: list[Document], pad: int) -> Iterator[Batch]:
    """These documents and no others, by width."""
    groups: dict[int, list[Document]] = {}
    for document in docs:
        groups.setdefault(width_of(document), []).append(document)
    for width, group in groups.items():
        for first in range(0, len(group), rows_of(width)):
            yield collate(group[first : first + rows_of(width)], width, pad)


def collate(group: list[Document], width: int, pad: int) -> Batch:
    """A batch of full shape; rows without a document teach nothing.

    A document's weight grows with the root of what it teaches: a sum's one digit must not drown in copied texts.
    """
    ids = torch.full((rows_of(width), width), pad)
    where: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for row, document in enumerate(group):
        ids[row, : len(document.ids)] = torch.tensor(document.ids)
        places = [place for place in range(1, len(document.ids)) if document.learnt[place]]
        where += [row * width + place - 1 for place in places]
        targets += [document.ids[place] for place in places]
        weights += [len(places) ** -0.5] * len(places)
    spare = -len(where) % 128
    return Batch(ids, torch.tensor(where + [0] * spare), torch.tensor(targets + [0] * spare), torch.tensor(weights + [0.0] * spare))

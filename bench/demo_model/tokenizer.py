"""Trains and writes the tokenizer: byte-level BPE, digits and line ends alone, a word split alike with and without a space.

The merges are learnt on bare words; then, last in rank, the space is joined to the pieces that most often follow one.
So " garden" and "garden" differ in their first token at most, which spares a tiny model from learning every word twice.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from bench.demo_model import kinds, words
from bench.demo_model.example import pieces_of

VOCAB_SIZE = 4096
BARE_SIZE = 2600  # bytes and the pieces of bare words
SPACE = "Ġ"  # a space, in the alphabet of byte-level BPE

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# Control tokens never show in the decoded text; tags do, since parsers of the text look for them.
CONTROL = [END_OF_TEXT, TURN_START, TURN_END]
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
RESERVED = [f"<|reserved_{n}|>" for n in range(32 - len(CONTROL) - len(TAGS))]
ADDED = CONTROL + TAGS + RESERVED

BARE = r"\n|\p{N}| |\p{L}+|[^\s\p{L}\p{N}]+|\s"
WITH_SPACE = r"\n|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s"


def splitter(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def corpus(seed: int, count: int) -> list[str]:
    """What the model will read, and every word of the lists in both cases so that none falls to letters."""
    rng = random.Random(seed)
    names = list(kinds.KINDS)
    texts = []
    for _ in range(count):
        text = "".join(piece for piece, _ in pieces_of(kinds.draw(rng.choice(names), rng, False)))
        for token in ADDED:
            text = text.replace(token, "\n")
        texts.append(text)
    listed = list(words.WORDS + words.NAMES + words.SURNAMES + words.CITIES)
    return texts + [" ".join(listed + [w.capitalize() for w in words.WORDS])] * 12


def bare_merges(texts: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of words without their spaces."""
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = splitter(BARE)
    trainer = BpeTrainer(vocab_size=BARE_SIZE, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def spaced_pieces(texts: list[str], vocab: dict[str, int], merges: list[tuple[str, str]], count: int) -> list[str]:
    """The pieces that most often stand behind a space."""
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = splitter(WITH_SPACE)
    seen: Counter[str] = Counter()
    for encoding in tokenizer.encode_batch(texts):
        tokens = encoding.tokens
        seen.update(after for before, after in itertools.pairwise(tokens) if before == SPACE and after != SPACE and not after.isdigit())
    return [piece for piece, _ in sorted(seen.items(), key=lambda item: (-item[1], item[0]))[:count]]


def build(seed: int = 0, count: int = 12000) -> Tokenizer:
    """The finished tokenizer; the same seed gives the same file."""
    texts = corpus(seed, count)
    vocab, merges = bare_merges(texts)
    for piece in spaced_pieces(texts, vocab, merges, VOCAB_SIZE - len(ADDED) - len(vocab)):
        vocab[SPACE + piece] = len(vocab)
        merges.append((SPACE, piece))
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = splitter(WITH_SPACE)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=token not in TAGS) for token in ADDED])
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"the corpus yields {tokenizer.get_vocab_size()} entries, not {VOCAB_SIZE}")
    return tokenizer


def write(tokenizer: Tokenizer, folder: Path, max_positions: int) -> None:
    """tokenizer.json, its configuration and the chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    template = Path(__file__).with_name("chat_template.jinja")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    shutil.copyfile(template, folder / "chat_template.jinja")
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token not in TAGS,
        }
        for token in ADDED
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": None,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_positions,
        "chat_template": template.read_text(),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")

"""The requests a benchmark sends: fixed shapes from a seed, or a JSON file; the same bytes each time.

A file holds {"requests": [{"prompt": [token ids] or text, "out": tokens}, ...]}.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec

from ipc.errors import ConfigError

FIRST_ORDINARY_TOKEN = 300  # above the specials and the 256 byte tokens of our tokenizers, so that decoded text is printable


class BenchRequest(msgspec.Struct, frozen=True):
    """One request: a prompt and how many tokens to generate, end-of-sequence ignored."""

    prompt: list[int] | str
    output_len: int


class Workload(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """A named list of requests."""

    name: str
    requests: list[BenchRequest]


def random_tokens(num: int, input_len: int, output_len: int, vocab_size: int, seed: int = 0, shared_prefix: int = 0) -> Workload:
    """`num` prompts of `input_len` random token ids, the first `shared_prefix` of them the same in all.

    Raises ConfigError when the lengths make no sense.
    """
    if not 0 <= shared_prefix <= input_len or input_len < 1 or output_len < 1 or num < 1:
        raise ConfigError(f"cannot make {num} requests of {input_len} in (of which {shared_prefix} shared) and {output_len} out")
    first = FIRST_ORDINARY_TOKEN if vocab_size > 2 * FIRST_ORDINARY_TOKEN else 0
    rng = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(first, vocab_size) for _ in range(count)]

    prefix = tokens(shared_prefix)
    requests = [BenchRequest(prefix + tokens(input_len - shared_prefix), output_len) for _ in range(num)]
    return Workload(f"random-{num}x{input_len}in{output_len}out", requests)


def from_file(path: str, num: int | None = None) -> Workload:
    """The first `num` requests of a workload file (all by default). Raises ConfigError saying what is wrong with it."""
    try:
        document: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        entries = document["requests"][:num]
        requests = [BenchRequest(msgspec.convert(entry["prompt"], list[int] | str), int(entry["out"])) for entry in entries]
    except OSError as error:
        raise ConfigError(f"cannot read the workload {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, msgspec.ValidationError) as error:
        raise ConfigError(f'{path} is not a workload file ({{"requests": [{{"prompt": ..., "out": n}}]}}): {error!r:.100}') from None
    if not requests:
        raise ConfigError(f"{path} holds no requests")
    return Workload(Path(path).stem, requests)

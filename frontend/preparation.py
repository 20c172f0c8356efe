"""From what a caller asks for to what a Submit says: checks, tokenization, seeds, bad words, the grammar."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from frontend.answer_formats import AnswerFormats
from frontend.behind_clients import TURNS, let_clients_by
from frontend.output_split import Splitting
from frontend.regex_automaton import RegexError, compiled
from frontend.stream import Work
from frontend.tokenizer import Tokenizer
from ipc.config import ChildSpec
from ipc.errors import InvalidRequestError
from ipc.grammar import Grammar
from ipc.messages import BEHIND_CLIENTS
from ipc.sampling_params import INT64, MAX_BAD_WORD_TOKENS, SamplingParams, ThinkingLimit

MAX_TIMEOUT = 86_400.0


@dataclass(frozen=True, slots=True)
class Truncation:
    """Keep only so many tokens of a prompt, its last or its first ones. limit -1: as many as leave room for the output."""

    limit: int
    keeps_end: bool = True

    def of(self, ids: list[int], room: int) -> list[int]:
        """room: most tokens a prompt may have here. Raises InvalidRequestError for a limit beyond it."""
        if self.limit > room:
            raise InvalidRequestError(
                f"truncate_prompt_tokens may be at most {room} here, got {self.limit}", "truncate_prompt_tokens", "context_length_exceeded"
            )
        count = room if self.limit < 0 else self.limit
        return ids if len(ids) <= count else ids[-count:] if self.keeps_end else ids[:count]


class Preparer:
    """Prepares requests for one model. Raises InvalidRequestError for what can never be served."""

    def __init__(self, spec: ChildSpec, tokenizer: Tokenizer) -> None:
        """Raises ConfigError for a format of answers that is set and not known."""
        self._spec, self._tokenizer = spec, tokenizer
        self.formats = AnswerFormats.of(spec.config.server, tokenizer)

    async def prepare(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        text: str | None = None,
        add_special_tokens: bool = True,
        arrival_ns: int = 0,
        timeout: float | None = None,
        splitting: Splitting | None = None,
        truncation: Truncation | None = None,
        opened: bool | None = None,
    ) -> list[Work]:
        """Check and tokenize one prompt; one Work for each of its n completions.

        text: the prompt's text, when `prompt` is its ids. timeout: seconds from arrival until it fails. opened: whether
        the prompt ends inside of reasoning; None finds out. Nothing is submitted yet.
        """
        await let_clients_by()
        arrival_ns = arrival_ns or time.monotonic_ns()
        model = self._spec.model
        deadline_ns = _deadline(arrival_ns, timeout)
        params.validate(model.vocab_size, self._spec.config.model.max_logprobs)
        _check_patterns(params.stop_regex)
        if isinstance(prompt, str):
            text, ids = prompt, await self._tokenizer.encode_soon(prompt, add_special_tokens)
        else:
            ids = prompt
        if truncation is not None:
            # With -1 the wish for output is kept; a given number may leave less of it, as for a prompt that has so many tokens.
            output = (params.max_tokens or 1) if truncation.limit < 0 else 1
            whole, ids = ids, truncation.of(ids, max(1, model.max_model_len - output))
            text = text if len(ids) == len(whole) else None
        self._check_prompt(ids, "prompt")
        if len(ids) >= model.max_model_len:
            raise InvalidRequestError(
                f"the prompt has {len(ids)} tokens; with at least one token of output, this model takes at most {model.max_model_len - 1}",
                "prompt",
                "context_length_exceeded",
            )
        room = model.max_model_len - len(ids)
        grammar = self._grammar(params)
        params = msgspec.structs.replace(
            params,
            max_tokens=min(params.max_tokens or room, room),
            min_tokens=min(params.min_tokens, room),
            structured_outputs=None,  # `grammar` says it now
        )
        bad_words = self._bad_words(params.bad_words)
        thinking = self._thinking(params, ids, opened)
        request_id = _text("request_id", request_id) or f"req-{secrets.token_hex(12)}"
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        return [
            Work(
                request_id=request_id,
                index=index,
                prompt=text,
                prompt_ids=ids,
                params=params,
                seed=_seed_of(seed, index),
                arrival_ns=arrival_ns,
                priority=_place(priority),
                cache_salt=_text("cache_salt", cache_salt),
                bad_words=bad_words,
                deadline_ns=deadline_ns,
                grammar=grammar,
                splitting=splitting,
                thinking=thinking,
            )
            for index in range(params.n)
        ]

    async def prepare_embedding(
        self,
        prompt: str | list[int],
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        add_special_tokens: bool = True,
        arrival_ns: int = 0,
        timeout: float | None = None,
        truncation: Truncation | None = None,
    ) -> Work:
        """As `prepare`, for a prompt whose vector is wanted; it may fill the model's whole context. Errors call it 'input'."""
        await let_clients_by()
        arrival_ns = arrival_ns or time.monotonic_ns()
        deadline_ns, most = _deadline(arrival_ns, timeout), self._spec.model.max_model_len
        ids = await self._tokenizer.encode_soon(prompt, add_special_tokens) if isinstance(prompt, str) else prompt
        if truncation is not None:
            ids = truncation.of(ids, most)
        self._check_prompt(ids, "input")
        if len(ids) > most:
            raise InvalidRequestError(
                f"the input has {len(ids)} tokens, this model takes at most {most}", "input", "context_length_exceeded"
            )
        return Work(
            request_id=_text("request_id", request_id) or f"embd-{secrets.token_hex(12)}",
            index=0,
            prompt=None,
            prompt_ids=ids,
            params=SamplingParams(max_tokens=1),
            seed=0,
            arrival_ns=arrival_ns,
            priority=_place(priority),
            cache_salt=_text("cache_salt", cache_salt),
            deadline_ns=deadline_ns,
            embed=True,
        )

    def _check_prompt(self, ids: list[int], name: str) -> None:
        """name: what the caller calls it."""
        if not ids:
            raise InvalidRequestError(f"the {name} is empty: it has no tokens", name)
        check_ids(name, ids, self._spec.model.vocab_size)

    def _grammar(self, params: SamplingParams) -> Grammar | None:
        """What the output must follow. Raises InvalidRequestError if it is larger than the scheduler would take."""
        if params.structured_outputs is None:
            return None
        grammar, limit = params.structured_outputs.to_grammar(), self._spec.config.structured_outputs.max_grammar_chars
        if len(grammar.text) > limit:
            raise InvalidRequestError(f"{grammar.param} may have at most {limit} characters, got {len(grammar.text)}", grammar.param)
        return grammar

    @cached_property
    def thinking_marks(self) -> tuple[int, int] | None:
        """The tokens that open and close this model's reasoning; None if it has none, or none that are one token each."""
        formats = self.formats
        if formats.reasoning is None or formats.reasoning.channels:
            return None
        begin, end = formats.added.get(formats.reasoning.begin), formats.added.get(formats.reasoning.end)
        return None if begin is None or end is None else (begin, end)

    def _thinking(self, params: SamplingParams, ids: list[int], opened: bool | None) -> ThinkingLimit | None:
        """Raises InvalidRequestError where a limit cannot be kept."""
        if params.thinking_token_budget in (None, -1):
            return None
        if self.thinking_marks is None:
            raise InvalidRequestError(
                "thinking_token_budget needs a model whose reasoning is between two tokens of its own, and a known reasoning format "
                "(--reasoning-parser)",
                "thinking_token_budget",
            )
        begin, end = self.thinking_marks
        if opened is None:
            last = next((token for token in reversed(ids) if token in (begin, end)), end)
            opened = last == begin
        return ThinkingLimit(params.thinking_token_budget or 0, begin, end, opened)

    def _bad_words(self, words: list[str]) -> list[list[int]]:
        """Each word as it is written at a text's start and after a space, since vocabularies have different tokens for the two."""
        found: list[list[int]] = []
        for word in words:
            for text in (word, " " + word.lstrip()):
                ids = self._tokenizer.encode(text, add_special_tokens=False)
                if ids and ids not in found:
                    found.append(ids)
        if sum(map(len, found)) > MAX_BAD_WORD_TOKENS:
            raise InvalidRequestError(f"bad_words may have at most {MAX_BAD_WORD_TOKENS} tokens in all", "bad_words")
        return found


def _check_patterns(patterns: list[str]) -> None:
    """Raise InvalidRequestError for one that is none, or that would cost too much."""
    try:
        compiled(patterns)
    except RegexError as error:
        raise InvalidRequestError(f"stop_regex {error}", "stop_regex") from None


def check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raise InvalidRequestError for a token id that is none of the model's. name: what the caller calls them."""
    for token in (min(ids), max(ids)) if ids else ():
        if not 0 <= token < vocab_size:
            raise InvalidRequestError(f"the {name} has token id {token}; this model's go from 0 to {vocab_size - 1}", name)


def _deadline(arrival_ns: int, timeout: float | None) -> int:
    """When a request fails if it has not ended; 0 is never. Raises InvalidRequestError."""
    if timeout is None:
        return 0
    if not 0 < timeout <= MAX_TIMEOUT:
        raise InvalidRequestError(f"timeout must be more than 0 and at most {MAX_TIMEOUT:g} seconds", "timeout")
    return arrival_ns + int(timeout * 1e9)


def _text(name: str, value: Any) -> Any:
    """The value, if it is text or None. HTTP's is, by its schema; a Python program may give anything. Raises InvalidRequestError."""
    if value is not None and not isinstance(value, str):
        raise InvalidRequestError(f"{name} must be a string, got {value!r:.40}", name)
    return value


def _place(priority: int) -> int:
    """The priority that the scheduler is told. Raises InvalidRequestError."""
    if isinstance(priority, bool) or not isinstance(priority, int) or not -INT64 <= priority < INT64:
        raise InvalidRequestError(f"priority must be an integer of 64 bits, got {priority!r:.40}", "priority")
    if TURNS.get() is not None:
        return BEHIND_CLIENTS + max(-BEHIND_CLIENTS // 2, min(priority, BEHIND_CLIENTS // 2))
    return priority


def _seed_of(seed: int, index: int) -> int:
    """Completion 0 keeps the request's seed; the others' follow from it, so that a repeated request repeats all of them."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % INT64

"""Which submitted requests the scheduler takes: everything it or a worker would index with is checked here, once."""

from __future__ import annotations

import numpy as np

from ipc.config import StructuredOutputsConfig
from ipc.errors import InvalidRequestError
from ipc.grammar import Grammar
from ipc.messages import Submit
from scheduler_proc import row_setup
from scheduler_proc.frontends import Frontend
from scheduler_proc.kv_manager import KVManager
from scheduler_proc.request import Request

_MAX_HANDLE = 2**32 - 1
_INT64 = 2**63


def check(submit: Submit, frontend: Frontend, vocab_size: int, max_model_len: int, max_logprobs: int) -> None:
    """Raise InvalidRequestError naming the field that makes the request impossible."""
    if not 0 <= submit.handle <= _MAX_HANDLE:
        raise InvalidRequestError(f"handle {submit.handle} is not an unsigned 32-bit number", "handle")
    if submit.handle in frontend.requests:
        raise InvalidRequestError(f"handle {submit.handle} is in use", "handle")
    if submit.request_id in frontend.request_ids:
        raise InvalidRequestError(f"a request with the id {submit.request_id!r:.80} is running already", "request_id")
    for name, value in (("seed", submit.seed), ("priority", submit.priority), ("arrival_ns", submit.arrival_ns)):
        if not -_INT64 <= value < _INT64:
            raise InvalidRequestError(f"{name} {value} is not a signed 64-bit number", name)
    num_prompt = _check_tokens("prompt", submit.prompt, vocab_size)
    if not num_prompt:
        raise InvalidRequestError("the prompt has no tokens", "prompt")
    if submit.embed and num_prompt > max_model_len:
        raise InvalidRequestError(
            f"the prompt has {num_prompt} tokens, the model's context holds {max_model_len}", "prompt", "context_length_exceeded"
        )
    if num_prompt >= max_model_len and not submit.embed:
        raise InvalidRequestError(
            f"the prompt has {num_prompt} tokens, the model's context holds {max_model_len} with at least one of output",
            "prompt",
            "context_length_exceeded",
        )
    if submit.embed and submit.grammar is not None:
        raise InvalidRequestError("an embedding follows no grammar", submit.grammar.param)
    submit.params.validate(vocab_size, max_logprobs)
    num_emitted = _check_tokens("emitted", submit.emitted, vocab_size)
    if num_emitted >= num_output(submit, max_model_len):
        raise InvalidRequestError(f"{num_emitted} output tokens are known already, no more may come", "emitted")
    if submit.thinking is not None and not all(0 <= token < vocab_size for token in (submit.thinking.begin, submit.thinking.end)):
        raise InvalidRequestError("the markers of reasoning are not token ids of this model", "thinking_token_budget")
    for word in submit.bad_words:
        if not word or not all(0 <= token < vocab_size for token in word):
            raise InvalidRequestError(f"bad_words has {word!r:.80}, which are not token ids of this model", "bad_words")


def check_grammar(grammar: Grammar | None, settings: StructuredOutputsConfig) -> None:
    """Raise InvalidRequestError for a grammar that is not even tried."""
    if grammar is None:
        return
    if not settings.grammar_processes:
        raise InvalidRequestError("structured output is turned off on this server", grammar.param)
    if len(grammar.text) > settings.max_grammar_chars:
        raise InvalidRequestError(
            f"{grammar.param} may have at most {settings.max_grammar_chars} characters, got {len(grammar.text)}", grammar.param
        )


def check_size(request: Request, kv: KVManager, setup_capacity: int) -> None:
    """Raise InvalidRequestError if the request could never be started: it has more tokens than blocks, or a setup larger than a plan's."""
    least = request.num_prompt + (not request.pooling)
    needed, total = kv.blocks_for(max(len(request.tokens), least)), kv.pool.num_blocks
    if needed > total:
        raise InvalidRequestError(
            f"the prompt has {request.num_prompt} tokens and needs {needed} KV blocks of {kv.block_size}, the engine has {total}", "prompt"
        )
    request.setup_bytes = row_setup.size_without_history(request)
    if row_setup.size(request, request.end) > row_setup.room(setup_capacity):
        raise InvalidRequestError("the sampling parameters are too large together (bad_words, logit_bias)", "bad_words")


def num_output(submit: Submit, max_model_len: int) -> int:
    """Most output tokens of a request, by its own wish and the model's context; 1, which never comes, for one that samples nothing."""
    if submit.embed:
        return 1
    rest = max_model_len - len(submit.prompt) // 4
    wish = submit.params.max_tokens
    return rest if wish is None else min(wish, rest)


def _check_tokens(name: str, tokens: bytes, vocab_size: int) -> int:
    if len(tokens) % 4:
        raise InvalidRequestError(f"{name} is not an array of 32-bit token ids", name)
    ids = np.frombuffer(tokens, np.uint32)
    if len(ids) and int(ids.max()) >= vocab_size:
        at = int(np.argmax(ids >= vocab_size))
        raise InvalidRequestError(
            f"{name} token {at} is {int(ids[at].view(np.int32))}, which is not a token id of this model (0 to {vocab_size - 1})", name
        )
    return len(ids)

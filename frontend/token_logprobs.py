"""One token's log-probabilities as OpenAI's and Ollama's clients read them."""

from __future__ import annotations

from typing import Any

from frontend.outputs import TokenLogprobs
from frontend.tokenizer import Tokenizer
from ipc.sampling_params import SamplingParams

LOWEST_LOGPROB = -9999.0  # JSON has no infinity
# Which tokens are told of beside each chosen one: so many of the most likely, or these.
Wanted = int | list[int] | None


def wanted_logprobs(params: SamplingParams) -> Wanted:
    return params.logprob_token_ids or params.logprobs


def token_name(token: int) -> str:
    """How logprobs call a token with return_tokens_as_token_ids, in vLLM's way."""
    return f"token_id:{token}"


def floor(logprob: float) -> float:
    return logprob if logprob > LOWEST_LOGPROB else LOWEST_LOGPROB


def token_logprobs(tokenizer: Tokenizer, token: int, entry: TokenLogprobs, wanted: Wanted, as_ids: bool = False) -> dict[str, Any]:
    """The object for one token: itself, and the most likely in order or those that the request names."""

    def one(each_token: int) -> dict[str, Any]:
        raw = tokenizer.token_bytes(each_token)
        name = token_name(each_token) if as_ids else raw.decode("utf-8", "replace")
        return {"token": name, "logprob": floor(entry[each_token].logprob), "bytes": list(raw)}

    if isinstance(wanted, list):
        best = wanted
    else:
        best = sorted((each for each in entry if (entry[each].rank or 0) <= (wanted or 0)), key=lambda each: entry[each].rank or 0)
    return {**one(token), "top_logprobs": [one(each) for each in best]}

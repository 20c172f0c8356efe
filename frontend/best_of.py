"""OpenAI's best_of: of several completions, the most likely by their tokens' mean log-probability."""

from __future__ import annotations

from frontend.outputs import CompletionOutput, RequestOutput


def keep_best(output: RequestOutput, count: int, show_logprobs: bool) -> None:
    """Leave the best `count` completions of a prompt, best first. All of them need logprobs, which stay only if they are to be shown."""
    best = sorted(output.outputs, key=_mean, reverse=True)[:count]
    for index, each in enumerate(best):
        each.index = index
        if not show_logprobs:
            each.logprobs = None
    output.outputs = best


def _mean(completion: CompletionOutput) -> float:
    total = completion.cumulative_logprob
    assert total is not None
    return total / max(1, len(completion.token_ids))

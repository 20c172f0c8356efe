"""The limits that GPU results are percentages of, against figures computed by hand and by another program."""

from __future__ import annotations

import pytest

from bench.gpu.limits import LLAMA_8B, Machine, decode_seconds, offline_seconds, sharegpt_like

H200 = Machine(4.3e12, 790e12)


def test_the_model() -> None:
    """8.03 billion parameters with the embedding, 128 KiB of keys and values per token."""
    assert LLAMA_8B.linear + 2 * LLAMA_8B.head == pytest.approx(8.03e9, rel=1e-3)
    assert LLAMA_8B.token_bytes == 131072


@pytest.mark.parametrize(
    "batch,context,milliseconds", [(1, 256, 3.50), (1, 4096, 3.62), (64, 256, 3.99), (64, 1024, 5.49), (256, 1024, 12.9), (256, 4096, 36.8)]
)
def test_decode(batch: int, context: int, milliseconds: float) -> None:
    assert decode_seconds(H200, batch, context) * 1e3 == pytest.approx(milliseconds, rel=5e-3)


def test_offline() -> None:
    """A thousand requests: about 17,000 tokens a second on an H200, 13,500 on an H100 of measured ceilings."""
    requests = sharegpt_like()
    made = sum(answer for _, answer in requests)
    assert (len(requests), sum(length for length, _ in requests), made) == (1000, 198115, 184086)
    assert made / offline_seconds(H200, requests) == pytest.approx(17000, rel=0.01)
    assert made / offline_seconds(Machine(3.0e12, 700e12), requests) == pytest.approx(13500, rel=0.01)


def test_a_single_request_offline_is_its_steps() -> None:
    """One prefill and then a decode step for each further token, over what is cached by then."""
    steps = [decode_seconds(H200, 1, context) for context in (101, 102)]
    alone = offline_seconds(H200, [(100, 3)])
    assert alone - offline_seconds(H200, [(100, 1)]) == pytest.approx(sum(steps), rel=1e-3)

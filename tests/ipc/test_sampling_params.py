"""Ranges of the sampling parameters: what the checklist accepts passes, the rest names its field."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ipc.errors import InvalidRequestError
from ipc.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0), ("n", 129), ("n", 1.0), ("n", True), ("temperature", -0.1), ("temperature", 2.1), ("temperature", float("nan")),
        ("temperature", "1"), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -2), ("top_k", 1.5), ("min_p", -0.1), ("min_p", 1.1),
        ("presence_penalty", 2.1), ("frequency_penalty", -2.1), ("repetition_penalty", 0.0), ("repetition_penalty", float("inf")),
        ("seed", 2**63), ("seed", -(2**63) - 1), ("max_tokens", 0), ("max_tokens", 2**64), ("min_tokens", -1), ("min_tokens", 17),
        ("stop", [""]), ("stop", ["x"] * 17), ("stop", ["x" * 2000]), ("stop", [1]), ("stop_token_ids", [100]), ("stop_token_ids", [-1]),
        ("stop_token_ids", [1] * 300), ("logprobs", -1), ("logprobs", 21), ("prompt_logprobs", 21), ("logit_bias", {100: 1.0}),
        ("logit_bias", {1: 101.0}), ("logit_bias", {1: float("nan")}), ("bad_words", [""]), ("bad_words", ["a"] * 200),
        ("allowed_token_ids", []), ("allowed_token_ids", [2**40]),
    ],
)  # fmt: skip
def test_out_of_range_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as error:
        SamplingParams(**{field: value}).validate(vocab_size=100)
    assert error.value.param == field
    assert field in error.value.message


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"temperature": 0}, {"temperature": 2.0}, {"top_p": 1.0}, {"top_k": -1}, {"top_k": 10**9}, {"min_p": 1.0}, {"seed": -(2**63)},
        {"max_tokens": None, "min_tokens": 10**6}, {"logprobs": 0}, {"logprobs": 20}, {"logit_bias": {0: -100.0, 99: 100}},
        {"allowed_token_ids": list(range(100))}, {"stop": ["x"] * 16}, {"n": 128},
    ],
)  # fmt: skip
def test_the_edges_of_each_range_are_inside(changes: dict[str, Any]) -> None:
    params = SamplingParams(**changes)
    assert params.validate(vocab_size=100) is params
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


STRANGE = ["x", 5, 1.5, True, None, [5], ["x"], [None], {"a": 1}, {1: "x"}, (1,), {2}, b"x", object(), float("nan"), 2**70, [2**70], [[1]]]


@pytest.mark.parametrize("field", SamplingParams.__struct_fields__)
def test_what_is_valid_is_understood_by_the_scheduler(field: str) -> None:
    """It drops a message that it cannot decode, and whoever waits for the request would wait for ever."""
    refused = 0
    for value in STRANGE:
        params = SamplingParams(**{field: value})
        try:
            params.validate(vocab_size=100)
        except InvalidRequestError:
            refused += 1
        else:
            msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams)
    assert refused > len(STRANGE) // 2


def test_one_string_and_none_as_in_vllm() -> None:
    params = SamplingParams(stop="x", stop_regex="y", stop_token_ids=None, bad_words=None, logit_bias=None)  # type: ignore[arg-type]
    assert params == SamplingParams(stop=["x"], stop_regex=["y"])
    assert SamplingParams(stop=None, stop_regex=None) == SamplingParams()  # type: ignore[arg-type]


def test_greedy() -> None:
    assert SamplingParams(temperature=0.0).greedy
    assert SamplingParams(temperature=1e-6).greedy
    assert not SamplingParams(temperature=0.01).greedy

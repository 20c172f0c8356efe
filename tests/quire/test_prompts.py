"""The shapes of prompts that `LLM.generate` takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ipc.config import ModelInfo
from ipc.errors import InvalidRequestError
from ipc.sampling_params import SamplingParams
from quire.prompts import as_list, conversations, default_params, params_for


@pytest.mark.parametrize(
    "given, expected",
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ((1, 2), [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["a", [1]], ["a", [1]]),
        ([], []),
        ([[]], [[]]),
        ({"prompt": "a"}, ["a"]),
        ([{"prompt_token_ids": [1]}, {"prompt": "b"}], [[1], "b"]),
        (list(np.array([4, 5])), [[4, 5]]),
    ],
)
def test_shapes(given: Any, expected: list[Any]) -> None:
    assert as_list(given) == expected


@pytest.mark.parametrize("given", [[None], [1.5], [[1, "a"]], [{"text": "a"}], [True, False], [[[1]]]])
def test_what_is_no_prompt(given: Any) -> None:
    with pytest.raises(InvalidRequestError) as error:
        as_list(given)
    assert error.value.param == "prompt"


def test_conversations() -> None:
    message = {"role": "user", "content": "x"}
    assert conversations([message]) == [[message]]
    assert conversations([[message], [message, message]]) == [[message], [message, message]]
    for wrong in (["x"], [[]], [message, [message]]):
        with pytest.raises(InvalidRequestError, match="messages"):
            conversations(wrong)  # type: ignore[arg-type]


def test_params() -> None:
    one, two = SamplingParams(n=2), SamplingParams(n=3)
    assert params_for(2, None, one) == [one, one]
    assert params_for(2, [one, two], one) == [one, two]
    with pytest.raises(InvalidRequestError, match="1 sampling_params for 2 prompts"):
        params_for(2, [one], one)
    for wrong in ({"temperature": 0}, [one, "two"], 0.5):
        with pytest.raises(InvalidRequestError, match="must be a SamplingParams"):
            params_for(2, wrong, one)  # type: ignore[arg-type]


def test_defaults_come_from_the_model() -> None:
    shape: dict[str, Any] = {
        "path": "",
        "tokenizer_path": "",
        "name": "",
        "architecture": "",
        "vocab_size": 9,
        "max_model_len": 9,
        "eos_token_ids": [],
    }
    assert default_params(ModelInfo(**shape)) == SamplingParams()
    advised = default_params(ModelInfo(**shape, generation_defaults={"top_k": 20.0, "temperature": 0.5}))
    assert (advised.top_k, advised.temperature, advised.max_tokens) == (20, 0.5, 16)
    advised.validate(9)

"""The chat template writes what the training text was rendered as, in the sandbox that servers use."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bench.demo_model import kinds
from bench.demo_model.example import Example

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "bench" / "demo_model" / "chat_template.jinja"
SHIPPED = [ROOT / "quire" / "demo_model", ROOT / "quire" / "demo_model" / "draft"]


def render(messages: list[dict[str, Any]], **more: Any) -> str:
    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(SOURCE.read_text()).render(messages=messages, **more)


def messages_of(example: Example, arguments_as_text: bool) -> list[dict[str, Any]]:
    """The conversation before its last answer, as an OpenAI client would send it."""
    messages: list[dict[str, Any]] = []
    for turn in example.turns[:-1]:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.calls:
            message["content"] = turn.content or None
            message["tool_calls"] = [
                {
                    "type": "function",
                    "id": f"call_{number}",
                    "function": {"name": c.name, "arguments": json.dumps(c.arguments) if arguments_as_text else c.arguments},
                }
                for number, c in enumerate(turn.calls)
            ]
        messages.append(message)
    return messages


def examples(count: int) -> list[Example]:
    rng = random.Random(5)
    makers = [
        lambda: kinds.draw(rng.choice(kinds.GRADED), rng, False),
        lambda: kinds.draw("tool_result", rng, False),
        lambda: kinds.chained(rng, 3, False),
        lambda: kinds.idle_thinking(rng, False),
        lambda: kinds.tool_session(rng, False),
    ]
    made = [rng.choice(makers)() for _ in range(count)]
    return [kinds.with_system(example, rng) if rng.random() < 0.3 else example for example in made]


def test_writes_what_was_trained_on() -> None:
    for example in examples(150):
        for as_text in (False, True):
            rendered = render(
                messages_of(example, as_text),
                tools=list(example.tools) or None,
                add_generation_prompt=True,
                enable_thinking=example.thinking,
            )
            assert rendered == example.prompt()


def test_content_may_be_a_list_of_parts() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert render([{"role": "user", "content": parts}]) == render([{"role": "user", "content": "hello"}])


def test_images_and_unknown_roles_are_refused() -> None:
    with pytest.raises(TemplateError, match="text only"):
        render([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])
    with pytest.raises(TemplateError, match="Unknown role"):
        render([{"role": "wizard", "content": "x"}])


def test_thoughts_do_not_stay_in_the_history() -> None:
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello!"}]
    assert render(talk) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"


def test_two_tool_results_share_a_turn() -> None:
    talk = [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    inside = "\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    assert render(talk) == f"<|im_start|>user{inside}<|im_end|>\n"


@pytest.mark.parametrize("folder", SHIPPED, ids=["big", "draft"])
def test_the_shipped_template_is_this_one(folder: Path) -> None:
    assert (folder / "chat_template.jinja").read_text() == SOURCE.read_text()
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == SOURCE.read_text()

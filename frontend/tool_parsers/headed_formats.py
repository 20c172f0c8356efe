"""A header with the function's name, then its arguments as JSON."""

from __future__ import annotations

from frontend.output_split.calls import HeadedCalls
from frontend.output_split.formats import ToolFormat

_CALLS = ("<｜tool▁calls▁begin｜>",), ("<｜tool▁calls▁end｜>",)
_CALL, _NAMED, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"

FORMATS = {
    "deepseek_v3": ToolFormat(HeadedCalls(_CALL, f"function{_NAMED}", ("```json",), ("```", _CALL_END)), *_CALLS),
    "deepseek_v31": ToolFormat(HeadedCalls(_CALL, "", (_NAMED,), (_CALL_END,)), *_CALLS),
    "kimi_k2": ToolFormat(
        HeadedCalls("<|tool_call_begin|>", "", ("<|tool_call_argument_begin|>",), ("<|tool_call_end|>",), numbered=True),
        ("<|tool_calls_section_begin|>",),
        ("<|tool_calls_section_end|>",),
    ),
}

"""Calls as JSON objects, alone or in a list, between markers or bare."""

from __future__ import annotations

from frontend.output_split.calls import JsonCalls
from frontend.output_split.formats import ToolFormat

_JSON = JsonCalls()
HERMES = ToolFormat(_JSON, ("<tool_call>",), ("</tool_call>",))
LIST_IN_TAGS = ToolFormat(_JSON, ("<tool_calls>",), ("</tool_calls>",))
LLAMA = ToolFormat(_JSON, ("<|python_tag|>",), bare=True, between=(";",))
MISTRAL = ToolFormat(
    JsonCalls(bare_name=True, id_marker="[CALL_ID]", argument_marker="[ARGS]"), ("[TOOL_CALLS]",), between=(",",), ids="mistral"
)

FORMATS = {
    "hermes": HERMES,
    "qwen3_json": HERMES,
    "granite4": HERMES,
    "ernie45": HERMES,
    "longcat": ToolFormat(_JSON, ("<longcat_tool_call>",), ("</longcat_tool_call>",)),
    "jamba": LIST_IN_TAGS,
    "hunyuan_a13b": LIST_IN_TAGS,
    "internlm": ToolFormat(_JSON, ("<|action_start|><|plugin|>", "<|action_start|> <|plugin|>"), ("<|action_end|>",)),
    "granite": ToolFormat(_JSON, ("<|tool_call|>", "<tool_call>")),
    "granite-20b-fc": ToolFormat(_JSON, ("<function_call>",)),
    "llama3_json": LLAMA,
    "llama4_json": LLAMA,
    "mistral": MISTRAL,
    "phi4_mini_json": ToolFormat(_JSON, ("functools",)),
    "xlam": ToolFormat(_JSON, ("<tool_call>", "[TOOL_CALLS]"), ("</tool_call>",), bare=True),
    "cohere_command3": ToolFormat(JsonCalls(("tool_name",), ("parameters",)), ("<|START_ACTION|>",), ("<|END_ACTION|>",)),
}

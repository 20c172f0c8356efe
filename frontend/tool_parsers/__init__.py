"""How models write tool calls, by the names that users know from other servers. A format is data; frontend/output_split reads it.

To add one, describe it with one of the payload shapes and name it in `TOOL_PARSERS`.
"""

from __future__ import annotations

from collections.abc import Mapping

from frontend.output_split.formats import ToolFormat
from frontend.tool_parsers import channel_formats, headed_formats, json_formats, python_formats, tagged_formats

TOOL_PARSERS: Mapping[str, ToolFormat] = {
    **json_formats.FORMATS,
    **headed_formats.FORMATS,
    **tagged_formats.FORMATS,
    **python_formats.FORMATS,
    **channel_formats.FORMATS,
}

# SGLang's names for some of them.
ALIASES: Mapping[str, str] = {
    "deepseekv3": "deepseek_v3",
    "deepseekv31": "deepseek_v31",
    "deepseekv32": "deepseek_v32",
    "glm": "glm45",
    "gpt-oss": "openai",
    "interns1": "internlm",
    "llama3": "llama3_json",
    "minimax-m2": "minimax_m2",
    "qwen": "hermes",
    "qwen25": "hermes",
}

# What a chat template that writes calls in a format says, most telling first: all of these texts, then the format's name.
TEMPLATE_SIGNS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("<|channel|>", "<|message|>"), "openai"),
    (("｜DSML｜",), "deepseek_v32"),
    (("<｜tool▁calls▁begin｜>", "```json"), "deepseek_v3"),
    (("<｜tool▁calls▁begin｜>",), "deepseek_v31"),
    (("<|tool_calls_section_begin|>",), "kimi_k2"),
    (("<seed:tool_call>",), "seed_oss"),
    (("<minimax:tool_call>",), "minimax_m2"),
    (("<longcat_tool_call>",), "longcat"),
    (("<arg_key>",), "glm45"),
    (("<tool_call>", "<function="), "qwen3_coder"),
    (("[TOOL_CALLS]",), "mistral"),
    (("<|tool_call_start|>",), "lfm2"),
    (("<|python_start|>",), "llama4_pythonic"),
    (("<|START_ACTION|>",), "cohere_command3"),
    (("<|action_start|>",), "internlm"),
    (("functools[",), "phi4_mini_json"),
    (("<function_calls>",), "olmo3"),
    (("<|tool_call|>",), "granite"),
    (("<tool_call>",), "hermes"),
    (("<tool_calls>",), "jamba"),
    (("<function_call>",), "granite-20b-fc"),
    (("<|start_header_id|>", '"parameters"'), "llama3_json"),
)

"""One well-formed answer per tool format: what a model writes, and the calls that it makes by it."""

from __future__ import annotations

from typing import Any

SCHEMAS: dict[str, dict[str, Any]] = {
    "f": {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "s": {"type": "string"},
            "o": {"$ref": "#/$defs/thing"},
            "n": {"type": ["string", "null"]},
            "e": {"enum": ["x", "y"]},
        },
        "$defs": {"thing": {"type": "object"}},
    },
    "g": {},
}
TWO = [("f", {"a": 1}), ("g", {})]
TEXT = 'über "x"\n</b> 😀'

_ONE = '{"name": "f", "arguments": {"a": 1}}'
_OTHER = '{"arguments": {}, "name": "g"}'
_LIST = f"[{_ONE}, {_OTHER}]"
_HERMES = f"<tool_call>\n{_ONE}\n</tool_call>\n<tool_call>\n{_OTHER}\n</tool_call>"
_LLAMA = '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}'
_QWEN = "<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n"
_QWEN_TWO = f"<tool_call>\n{_QWEN}</tool_call>\n<tool_call>\n<function=g>\n</function>\n</tool_call>"
_GLM = "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>\n<tool_call>g\n</tool_call>"
_V3 = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>%s\n```json\n%s\n```<｜tool▁call▁end｜>"
_V31 = "<｜tool▁call▁begin｜>%s<｜tool▁sep｜>%s<｜tool▁call▁end｜>"
_KIMI = "<|tool_call_begin|>functions.{}:{}<|tool_call_argument_begin|>{}<|tool_call_end|>"

ANSWERS: dict[str, str] = {
    **dict.fromkeys(("hermes", "qwen3_json", "granite4", "ernie45"), _HERMES),
    "longcat": _HERMES.replace("tool_call>", "longcat_tool_call>"),
    **dict.fromkeys(("jamba", "hunyuan_a13b"), f"<tool_calls>{_LIST}</tool_calls>"),
    "internlm": f"<|action_start|><|plugin|>\n{_ONE}<|action_end|><|action_start|><|plugin|>{_OTHER}<|action_end|>",
    "granite": f"<|tool_call|>{_LIST}",
    "granite-20b-fc": f"<function_call> {_ONE} <function_call> {_OTHER}",
    **dict.fromkeys(("llama3_json", "llama4_json"), _LLAMA),
    "mistral": '[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": 1}[TOOL_CALLS]g{}',
    "phi4_mini_json": f"functools{_LIST}",
    "xlam": _LIST,
    "cohere_command3": '<|START_ACTION|>[\n{"tool_call_id": "0", "tool_name": "f", "parameters": {"a": 1}},'
    '\n{"tool_call_id": "1", "tool_name": "g", "parameters": {}}\n]<|END_ACTION|>',
    "deepseek_v3": "<｜tool▁calls▁begin｜>" + _V3 % ("f", '{"a": 1}') + "\n" + _V3 % ("g", "{}") + "<｜tool▁calls▁end｜>",
    "deepseek_v31": "<｜tool▁calls▁begin｜>" + _V31 % ("f", '{"a": 1}') + _V31 % ("g", "{}") + "<｜tool▁calls▁end｜>",
    "kimi_k2": "<|tool_calls_section_begin|>"
    + _KIMI.format("f", 0, '{"a": 1}')
    + _KIMI.format("g", 1, "{}")
    + "<|tool_calls_section_end|>",
    **dict.fromkeys(("qwen3_coder", "qwen3_xml", "mimo", "step3p5"), _QWEN_TWO),
    "seed_oss": _QWEN_TWO.replace("tool_call>", "seed:tool_call>"),
    **dict.fromkeys(("glm45", "glm47"), _GLM),
    "minimax_m2": '<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">1</parameter>\n</invoke>\n<invoke name="g">\n</invoke>\n'
    "</minimax:tool_call>",
    "deepseek_v32": '<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n'
    '<｜DSML｜parameter name="a" string="false">1</｜DSML｜parameter>\n'
    '</｜DSML｜invoke>\n<｜DSML｜invoke name="g">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
    "pythonic": "[f(a=1), g()]",
    "llama4_pythonic": "<|python_start|>[f(a=1), g()]<|python_end|>",
    "lfm2": "<|tool_call_start|>[f(a=1), g()]<|tool_call_end|>",
    "olmo3": "<function_calls>\nf(a=1)\ng()\n</function_calls>",
    "openai": '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
    "<|start|>assistant to=functions.g<|channel|>commentary json<|message|>{}<|call|>",
}

"""A tag around each parameter."""

from __future__ import annotations

from frontend.output_split.formats import ToolFormat
from frontend.output_split.tagged_calls import TaggedCalls

_FUNCTION = TaggedCalls("<function=", ">", "<parameter=", (">",), "</parameter>", "</function>", newlines=True)
_KEYS = TaggedCalls("", "", "<arg_key>", ("</arg_key>", "<arg_value>"), "</arg_value>", "")
QWEN = ToolFormat(_FUNCTION, ("<tool_call>",), ("</tool_call>",))
GLM = ToolFormat(_KEYS, ("<tool_call>",), ("</tool_call>",))

FORMATS = {
    "qwen3_coder": QWEN,
    "qwen3_xml": QWEN,
    "mimo": QWEN,
    "step3p5": QWEN,
    "seed_oss": ToolFormat(_FUNCTION, ("<seed:tool_call>",), ("</seed:tool_call>",)),
    "glm45": GLM,
    "glm47": GLM,
    "minimax_m2": ToolFormat(
        TaggedCalls('<invoke name="', '">', '<parameter name="', (">",), "</parameter>", "</invoke>"),
        ("<minimax:tool_call>",),
        ("</minimax:tool_call>",),
    ),
    "deepseek_v32": ToolFormat(
        TaggedCalls(
            '<｜DSML｜invoke name="',
            '">',
            '<｜DSML｜parameter name="',
            (">",),
            "</｜DSML｜parameter>",
            "</｜DSML｜invoke>",
            'string="true"',
        ),
        ("<｜DSML｜function_calls>",),
        ("</｜DSML｜function_calls>",),
    ),
}

"""Calls written as Python."""

from __future__ import annotations

from frontend.output_split.formats import ToolFormat
from frontend.output_split.python_calls import PythonCalls

FORMATS = {
    "pythonic": ToolFormat(PythonCalls(), bare=True),
    "llama4_pythonic": ToolFormat(PythonCalls(), ("<|python_start|>",), ("<|python_end|>",), bare=True),
    "lfm2": ToolFormat(PythonCalls(), ("<|tool_call_start|>",), ("<|tool_call_end|>",)),
    "olmo3": ToolFormat(PythonCalls(bracketed=False), ("<function_calls>",), ("</function_calls>",)),
}

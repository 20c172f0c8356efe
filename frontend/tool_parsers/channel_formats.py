"""gpt-oss: calls are messages to functions, in a channel of their own."""

from __future__ import annotations

from frontend.output_split.channels import Channels
from frontend.output_split.formats import ToolFormat

FORMATS = {"openai": ToolFormat(Channels())}

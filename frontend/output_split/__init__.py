"""Splits what a model writes into content, reasoning and tool calls, while it is being written."""

from frontend.output_split.deltas import Delta, Kind, Message, ToolCall, joined
from frontend.output_split.splitter import Splitter
from frontend.output_split.splitting import Splitting

__all__ = ["Delta", "Kind", "Message", "Splitter", "Splitting", "ToolCall", "joined"]

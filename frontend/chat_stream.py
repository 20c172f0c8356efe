"""A chat completion's events when the answer is taken apart: content, reasoning and tool calls, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from frontend.detokenizer import json_inside
from frontend.output_split import Delta, Kind, Splitter, ToolCall, joined
from frontend.sse import SseStream, encode


class ChatSseStream(SseStream):
    """As SseStream, with a splitter between text and frames, for as long as there is something to split. Needs work.splitting."""

    __slots__ = ("_called", "_counted", "_deltas", "_fast", "_show_reasoning", "_splitter")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        splitting = self.work.splitting
        assert splitting is not None
        self._splitter: Splitter | None = splitting.splitter()
        self._show_reasoning = splitting.show_reasoning
        self._called = False
        self._counted = 0
        # Special tokens that are markers become text as well, which the prebuilt table leaves out.
        self._fast = self._json if not splitting.kept else None
        self._json = None
        self._deltas: list[Delta] = []  # that wait for their chunk's time

    def push(self, token: int) -> bool:
        splitter = self._splitter
        if splitter is None:
            return super().push(token)
        self._usage.completion_tokens += 1
        text = self.text_of(token)
        self._note(token)
        deltas = splitter.feed_token(text)
        self._count(splitter)
        self._tell(deltas)
        if splitter.plain and not self._waits:
            self._tell(splitter.release())
            self._splitter, self._json = None, self._fast
        return self.stopped or splitter.done

    def on_end(self) -> None:
        self._interval = 1
        if self.error is None and self._splitter is not None:
            self._tell(self._splitter.feed(self.last_text()))
            self._tell(self._splitter.finish())
            self._splitter = None
        if self._called and self.reason == "stop":
            self.reason = "tool_calls"
        super().on_end()

    def _send(self, text: str) -> None:
        if self._splitter is not None and text:
            self._tell(self._splitter.feed(text))
        else:
            super()._send(text)

    def _tell(self, deltas: Iterable[Delta]) -> None:
        if self._interval > 1 or self._deltas:
            self._deltas += deltas
            if self._waits:
                return
            deltas, self._deltas = joined(self._deltas), []
        for delta in deltas:
            match delta.kind:
                case Kind.CONTENT:
                    super()._send(delta.text)
                case Kind.REASONING:
                    if self._show_reasoning:
                        body = json_inside(delta.text)
                        self._frame(b'{"reasoning_content":"%b","reasoning":"%b"}' % (body, body))
                case Kind.CALL:
                    self._called = True
                    self._frame(encode({"tool_calls": [{"index": delta.call, **ToolCall(delta.id, delta.name).as_json()}]}))
                case Kind.ARGUMENTS:
                    part = b'{"tool_calls":[{"index":%d,"function":{"arguments":"%b"}}]}'
                    self._frame(part % (delta.call, json_inside(delta.text)))

    def _frame(self, delta: bytes) -> None:
        self._response.frame(self, self._chunk(b'"delta":%b,"logprobs":' % delta, self._logprobs(), b"null"))

    def _count(self, splitter: Splitter) -> None:
        more = splitter.reasoning_tokens - self._counted
        self._counted += more
        self._usage.reasoning_tokens = (self._usage.reasoning_tokens or 0) + more

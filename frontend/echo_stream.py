"""A completion's events where only its prompt is wanted: echo with max_tokens 0."""

from __future__ import annotations

from frontend.sse import SseStream


class EchoStream(SseStream):
    """One frame: the prompt's text, what is asked for of it, the end. A token that the engine makes for it is neither shown nor counted."""

    __slots__ = ()

    def begin_with(self, text: str) -> None:
        self._echo = text

    def push(self, token: int) -> bool:
        return False

    def push_last(self, token: int) -> None:
        pass

    def on_end(self) -> None:
        if self.error is None:
            self._entries = list(zip(self.work.prompt_ids, self.prompt_logprobs() or []))
            frame = self._chunk(self._text(self._echo or ""), self._logprobs(), b'"length","stop_reason":null')
            self._response.frame(self, frame, bounded=False)
        self._response.ended(self.error)

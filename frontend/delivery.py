"""What the scheduler says, given to the streams that it is for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np

from frontend.live_streams import LiveStreams
from frontend.logprob_rows import prompt_rows, token_rows
from frontend.metrics import Metrics
from frontend.stream import REASONS, Stream
from frontend.vectors import VectorStream
from ipc.errors import EngineDeadError, InvalidRequestError, QueueFullError, RequestFailedError
from ipc.messages import Finished, FinishReason, RefuseCode, Refused, Tokens

log = logging.getLogger(__name__)


class Delivery:
    """abort: tells the scheduler of handles that are wanted no more."""

    def __init__(self, live: LiveStreams, metrics: Metrics | None, abort: Callable[[list[int]], None]) -> None:
        self._live, self._metrics, self._abort = live, metrics, abort

    def tokens(self, message: Tokens) -> None:
        """The hot loop: every token of a step for this process, straight into its stream."""
        handles = np.frombuffer(message.handles, dtype=np.uint32).tolist()
        indexes = np.frombuffer(message.index, dtype=np.uint32).tolist()
        tokens = np.frombuffer(message.tokens, dtype=np.int32).tolist()
        ends: dict[int, Finished] = {each.handle: each for each in message.finished} if message.finished else {}
        rows = token_rows(message.logprobs) if message.logprobs is not None else None
        self._besides(message)
        get, now, gaps, place = self._live.by_handle.get, time.monotonic_ns(), [], -1
        for handle, index, token in zip(handles, indexes, tokens):
            place += 1
            stream = get(handle)
            if stream is None:
                continue
            ids = stream.ids
            if index != len(ids):
                if index > len(ids):
                    self._fail(stream, f"tokens {len(ids)} to {index - 1} were lost on the way from the scheduler")
                continue
            ids.append(token)
            if stream.last_ns:
                gaps.append(now - stream.last_ns)
            else:
                stream.first_ns = now
            stream.last_ns = now
            if rows is not None:
                stream.row = rows.get(place)
            try:
                if handle in ends and token == ends[handle].stop_token and index == ends[handle].num_output - 1:
                    stream.push_last(token)
                elif stream.push(token):
                    self._abort([handle])
                    self._live.end(stream, stream.ending)
            except Exception as error:
                # One request's text must not end everybody's.
                log.exception("request %s: its output cannot be handled", stream.work.request_id)
                self._fail(stream, f"its output cannot be handled ({type(error).__name__})")
        for finished in message.finished:
            self._finished(finished)
        if self._metrics is not None and gaps:
            self._metrics.observe_gaps(gaps)

    def refused(self, refused: Refused) -> None:
        """The scheduler did not take a request."""
        stream = self._live.by_handle.get(refused.handle)
        if stream is None:
            return
        error: Exception
        if refused.code == RefuseCode.INVALID:
            error = InvalidRequestError(refused.message, refused.param or None)
        elif refused.code == RefuseCode.QUEUE_FULL:
            error = QueueFullError(refused.message, max(refused.retry_after_s, 1.0))
        else:
            error = EngineDeadError(refused.message)
        if self._metrics is not None and refused.code != RefuseCode.INVALID:
            self._metrics.count("admission_rejections", "queue_full" if refused.code == RefuseCode.QUEUE_FULL else "draining")
        self._live.end(stream, "error", None, error)

    def _besides(self, message: Tokens) -> None:
        """What a request has once, and not for each token; it comes before the tokens."""
        get = self._live.by_handle.get
        for started in message.started:
            stream = get(started.handle)
            if stream is not None and stream.started is None:  # a second one is of a scheduler that came after
                stream.started = started
        for prompt in message.prompt_logprobs:
            stream = get(prompt.handle)
            if stream is not None:
                stream.prompt_rows.update(prompt_rows(prompt))
        for embedding in message.embeddings:
            stream = get(embedding.handle)
            if isinstance(stream, VectorStream):
                stream.vector = embedding.vector

    def _finished(self, finished: Finished) -> None:
        stream = self._live.by_handle.get(finished.handle)
        if stream is None:
            return
        if finished.reason == FinishReason.ERROR:
            error = RequestFailedError(finished.error or "the engine could not finish this request")
            self._live.end(stream, "error", finished, error)
        elif finished.num_output > len(stream.ids):
            self._fail(stream, f"it ended after {finished.num_output} tokens, of which {len(stream.ids)} arrived")
        else:
            self._live.end(stream, REASONS[finished.reason], finished)

    def _fail(self, stream: Stream, why: str) -> None:
        self._abort([stream.handle])
        self._live.end(stream, "error", None, RequestFailedError(f"request {stream.work.request_id} failed: {why}"))

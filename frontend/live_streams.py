"""The requests of one process that have not ended: by handle, by id, and how each ends here."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

from frontend.metrics import Metrics
from frontend.request_metrics import observe
from frontend.stream import Stream
from ipc.arena import I64, Stat
from ipc.errors import RequestFailedError
from ipc.messages import Finished

log = logging.getLogger(__name__)


class LiveStreams:
    """by_handle: all of them; only this class adds and removes. ended: how many have ended so far, however they did."""

    def __init__(self, metrics: Metrics | None, status: I64 | None, log_requests: bool) -> None:
        """status: this process's record, to be kept up to date. log_requests: a line for each that ends."""
        self.by_handle: dict[int, Stream] = {}
        self.ended = 0
        self._metrics, self._status, self._log_requests = metrics, status, log_requests
        self._handles = itertools.count(1)
        self._by_id: dict[str, list[Stream]] = {}

    def add(self, streams: Sequence[Stream]) -> None:
        """Each gets a handle."""
        for stream in streams:
            stream.handle = next(self._handles)
            self.by_handle[stream.handle] = stream
            self._by_id.setdefault(stream.work.request_id, []).append(stream)
        self._count()

    def of_request(self, request_id: str) -> list[Stream]:
        return list(self._by_id.get(request_id, ()))

    def end(self, stream: Stream, reason: str, finished: Finished | None = None, error: Exception | None = None) -> None:
        """Nothing more comes for this one; its reader is told."""
        self._forget(stream)
        work = stream.work
        if self._metrics is not None and work.counts:
            observe(self._metrics, stream, reason, finished)
        if self._log_requests and work.counts:
            log.info("request %s[%d]: %s after %d + %d tokens", work.request_id, work.index, reason, len(work.prompt_ids), len(stream.ids))
        try:
            stream.end(reason, finished, error)
        except Exception as failure:
            log.exception("request %s: its end cannot be handled", work.request_id)
            stream.end("error", None, RequestFailedError(f"its output cannot be handled ({type(failure).__name__})"))
        self._count()

    def drop(self, streams: Sequence[Stream]) -> list[int]:
        """Their reader is gone and is not told; the handles of those that had not ended."""
        live = [stream for stream in streams if self.by_handle.get(stream.handle) is stream]
        for stream in live:
            self._forget(stream)
            if self._metrics is not None and stream.work.counts:
                self._metrics.count("request_success", "abort")
        if live:
            self._count()
        return [stream.handle for stream in live]

    def _forget(self, stream: Stream) -> None:
        if self.by_handle.pop(stream.handle, None) is None:
            return
        self.ended += 1
        if stream.timer is not None:
            stream.timer.cancel()
            stream.timer = None
        siblings = self._by_id[stream.work.request_id]
        siblings.remove(stream)
        if not siblings:
            del self._by_id[stream.work.request_id]

    def _count(self) -> None:
        if self._status is not None:
            self._status[Stat.OPEN_STREAMS] = len(self.by_handle)

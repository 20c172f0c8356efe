"""The frontend's line to the scheduler: submits requests, hears of them, and carries every stream over a scheduler's death.

HTTP handlers and the Python API (`quire.LLM`, `quire.AsyncLLM`) use the same client.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import zmq

from frontend.delivery import Delivery
from frontend.live_streams import LiveStreams
from frontend.metrics import Metrics
from frontend.preparation import Preparer
from frontend.stream import Stream
from frontend.tokenizer import Tokenizer
from ipc.arena import Arena, Stat
from ipc.channels import Channel
from ipc.config import ChildSpec
from ipc.errors import ChannelFullError, DeadlineError, EngineDeadError, QueueFullError
from ipc.messages import Abort, Refused, SchedulerToFrontend, Submit, Tokens

log = logging.getLogger(__name__)


class EngineClient:
    """One process's client of the scheduler; use it on one event loop.

    tokenizer, preparer: set by `start`. What streams are told of: InvalidRequestError (400), QueueFullError (429), EngineDeadError (503)
    or RequestFailedError (500).
    """

    tokenizer: Tokenizer
    preparer: Preparer

    def __init__(
        self,
        spec: ChildSpec,
        context: zmq.Context[zmq.Socket[bytes]],
        arena: Arena | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """spec: of this process, whose identity the scheduler will see. arena: to keep this process's status record up to date."""
        self.spec = spec
        self.metrics = metrics
        self._context = context
        self._loop = loop
        self._status = arena.status(spec.role, spec.index) if arena is not None else None
        self._epoch = spec.scheduler_epoch
        self._channel: Channel[Any] | None = None
        self._dead = ""
        self._live = LiveStreams(metrics, self._status, spec.config.log.log_requests)
        self._delivery = Delivery(self._live, metrics, self._send_abort)

    @property
    def ended(self) -> int:
        """How many requests have ended so far, however they did."""
        return self._live.ended

    # life

    async def start(self) -> None:
        """Load the tokenizer and open the channel. Raises ConfigError for a tokenizer or a format of answers that cannot be used."""
        self._loop = asyncio.get_running_loop()
        model = self.spec.model
        self.tokenizer = await self._loop.run_in_executor(None, Tokenizer.load, model.tokenizer_path, self.spec.config.model.chat_template)
        self.preparer = Preparer(self.spec, self.tokenizer)
        self._connect()

    def close(self) -> None:
        """Abort what runs and close the channel; waiters get EngineDeadError."""
        self.engine_died("the engine was shut down")
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if hasattr(self, "tokenizer"):
            self.tokenizer.close()

    def scheduler_changed(self, epoch: int) -> None:
        """The scheduler lives in `epoch` now: submit every live stream to it, with the tokens its reader already has."""
        if epoch == self._epoch:
            return
        self._epoch = epoch
        if self._channel is None:
            return  # not started yet; `start` connects to this epoch
        self._channel.close()
        self._connect()
        streams = self._live.by_handle.values()
        if streams:
            log.info("scheduler epoch %d: resubmitting %d requests", epoch, len(streams))
        for stream in streams:
            self._submit(stream)

    def engine_died(self, why: str) -> None:
        """Nothing will come any more: every waiter gets EngineDeadError, and so does every later request."""
        self._dead = why
        self.fail_all(EngineDeadError(why))

    def fail_all(self, error: Exception) -> None:
        """End every live stream with `error`, here and in the scheduler."""
        streams = list(self._live.by_handle.values())
        if streams:
            self._send_abort([stream.handle for stream in streams])
        for stream in streams:
            self._live.end(stream, "error", None, error)

    # streams

    def open(self, streams: Sequence[Stream]) -> None:
        """Submit streams; from now on they are pushed to. Raises EngineDeadError or QueueFullError, and then takes none of them."""
        if self._dead:
            raise EngineDeadError(self._dead)
        self._live.add(streams)
        try:
            for stream in streams:
                self._submit(stream)
        except ChannelFullError:
            self.drop(streams)
            raise QueueFullError("the scheduler is not reading; try again later", 5.0) from None
        for stream in streams:
            if stream.work.deadline_ns:
                self._watch(stream)

    def drop(self, streams: Sequence[Stream]) -> None:
        """Nobody reads these any more: abort those that still run, without telling them."""
        handles = self._live.drop(streams)
        if handles:
            self._send_abort(handles)

    async def abort(self, request_id: str) -> None:
        """End a request early; its waiters get what there is, with finish_reason 'abort'. An unknown id is ignored."""
        streams = self._live.of_request(request_id)
        if streams:
            self._send_abort([stream.handle for stream in streams])
            for stream in streams:
                self._live.end(stream, "abort")

    def _watch(self, stream: Stream) -> None:
        assert self._loop is not None
        left = (stream.work.deadline_ns - time.monotonic_ns()) * 1e-9
        stream.timer = self._loop.call_later(max(0.0, left), self._late, stream)

    def _late(self, stream: Stream) -> None:
        self._send_abort([stream.handle])
        whole = (stream.work.deadline_ns - stream.work.arrival_ns) * 1e-9
        self._live.end(stream, "error", None, DeadlineError(f"the request did not finish within its timeout of {whole:g} s"))

    # messages

    def _connect(self) -> None:
        assert self._loop is not None
        address = self.spec.address("frontends", self._epoch)
        self._channel = Channel.dealer(self._context, address, self.spec.identity, SchedulerToFrontend, self._epoch)
        self._channel.attach(self._loop, self._on_message)

    def _submit(self, stream: Stream) -> None:
        assert self._channel is not None
        work = stream.work
        self._channel.send(
            Submit(
                handle=stream.handle,
                request_id=work.request_id if work.index == 0 else f"{work.request_id}-{work.index}",
                prompt=np.array(work.prompt_ids, dtype=np.int32).tobytes(),
                params=work.params,
                seed=work.seed,
                arrival_ns=work.arrival_ns,
                priority=work.priority,
                cache_salt=work.cache_salt,
                bad_words=work.bad_words,
                emitted=np.array(stream.ids, dtype=np.int32).tobytes(),
                grammar=work.grammar,
                thinking=work.thinking,
                embed=work.embed,
                scores=work.scores,
            )
        )

    def _send_abort(self, handles: list[int]) -> None:
        if self._channel is not None:
            try:
                self._channel.send(Abort(handles))
            except ChannelFullError:
                log.error("the scheduler is not reading; %d aborts were lost", len(handles))

    def _on_message(self, _peer: str, message: Tokens | Refused) -> None:
        if isinstance(message, Tokens):
            self._delivery.tokens(message)
            if self._status is not None:
                self._status[Stat.STEPS] += 1
        else:
            self._delivery.refused(message)
        if self._status is not None and self._channel is not None:
            self._status[Stat.DROPPED_FRAMES] = self._channel.dropped

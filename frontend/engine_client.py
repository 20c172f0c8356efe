"""The frontend's line to the scheduler: submits requests, reads the steps' tokens, and carries every stream over a scheduler's death.

HTTP handlers and the Python API (`quire.LLM`, `quire.AsyncLLM`) use the same client.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import zmq

from frontend.behind_clients import TURNS, in_turn
from frontend.logprob_rows import prompt_rows, token_rows
from frontend.metrics import Metrics
from frontend.outputs import CompletionOutput, RequestOutput
from frontend.preparation import Preparer
from frontend.request_metrics import observe
from frontend.stream import REASONS, CollectStream, DeltaStream, Gather, Stream, Work
from frontend.tokenizer import Tokenizer
from frontend.vectors import VectorStream
from ipc.arena import Arena, Stat
from ipc.channels import Channel
from ipc.config import ChildSpec
from ipc.errors import ChannelFullError, DeadlineError, EngineDeadError, InvalidRequestError, QueueFullError, RequestFailedError
from ipc.messages import Abort, Finished, FinishReason, PromptLogprobs, RefuseCode, Refused, SchedulerToFrontend, Submit, Tokens
from ipc.sampling_params import SamplingParams

log = logging.getLogger(__name__)


class EngineClient:
    """One process's client of the scheduler; use it on one event loop.

    tokenizer, preparer: set by `start`. streams: every live request by handle. All methods that take a prompt accept its text or its
    token ids and raise InvalidRequestError (400), QueueFullError (429), EngineDeadError (503) or RequestFailedError (500).
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
        self.streams: dict[int, Stream] = {}
        self.metrics = metrics
        self.on_idle: Callable[[], None] | None = None  # called whenever the last stream has ended
        self._context = context
        self._loop = loop
        self._status = arena.status(spec.role, spec.index) if arena is not None else None
        self._epoch = spec.scheduler_epoch
        self._channel: Channel[Any] | None = None
        self._handles = itertools.count(1)
        self.ended = 0  # requests so far that have ended, however they did
        self._by_id: dict[str, list[Stream]] = {}
        self._dead = ""

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
        if self.streams:
            log.info("scheduler epoch %d: resubmitting %d requests", epoch, len(self.streams))
        for stream in self.streams.values():
            self._submit(stream)

    def engine_died(self, why: str) -> None:
        """Nothing will come any more: every waiter gets EngineDeadError, and so does every later request."""
        self._dead = why
        self.fail_all(EngineDeadError(why))

    def fail_all(self, error: Exception) -> None:
        """End every live stream with `error`, here and in the scheduler."""
        if self.streams:
            self._send_abort(list(self.streams))
        for stream in list(self.streams.values()):
            self._end(stream, "error", None, error)

    # requests

    async def complete(
        self, prompt: str | list[int], params: SamplingParams, *, request_id: str | None = None, priority: int = 0, cache_salt: str = ""
    ) -> RequestOutput:
        """All n completions of one prompt, when they are done. Cancelling the caller aborts them."""
        works = await self.preparer.prepare(prompt, params, request_id=request_id, priority=priority, cache_salt=cache_salt)
        return (await self.run([works]))[0]

    async def stream(
        self, prompt: str | list[int], params: SamplingParams, *, request_id: str | None = None, priority: int = 0, cache_salt: str = ""
    ) -> AsyncIterator[RequestOutput]:
        """As `grow`, for one prompt."""
        works = await self.preparer.prepare(prompt, params, request_id=request_id, priority=priority, cache_salt=cache_salt)
        async with contextlib.aclosing(self.grow(works)) as outputs:
            async for output in outputs:
                yield output

    async def grow(self, works: Sequence[Work]) -> AsyncGenerator[RequestOutput, None]:
        """Compute one prompt's completions; each item carries only what is new since the one before, of every completion that has
        something new.

        The last item has finished=True. Leaving the iterator early aborts the request.
        """
        news = asyncio.Event()
        streams = [DeltaStream(work, self.tokenizer, news.set) for work in works]
        self.open(streams)
        reported: set[int] = set()
        try:
            while len(reported) < len(streams):
                await news.wait()
                news.clear()
                outputs = []
                for stream in streams:
                    if stream.work.index in reported:
                        continue
                    if stream.error is not None:
                        raise stream.error
                    output = stream.take()
                    if output.finish_reason is not None:
                        reported.add(stream.work.index)
                    if output.token_ids or output.text or output.finish_reason is not None:
                        outputs.append(output)
                if outputs:
                    yield _request_output(streams, outputs, finished=len(reported) == len(streams))
        finally:
            self.drop(streams)

    async def abort(self, request_id: str) -> None:
        """End a request early; its waiters get what there is, with finish_reason 'abort'. An unknown id is ignored."""
        streams = list(self._by_id.get(request_id, ()))
        if streams:
            self._send_abort([stream.handle for stream in streams])
            for stream in streams:
                self._end(stream, "abort")

    async def run(self, prompts: Sequence[Sequence[Work]]) -> list[RequestOutput]:
        """Compute several prompts' completions and wait for all with one wake-up. If one fails, the others are aborted."""
        turns = TURNS.get()
        if turns is None:
            return await self._run(prompts)
        singles = iter(await in_turn(turns, [partial(self._run, [[work]]) for prompt in prompts for work in prompt]))
        return [_joined([output for [output] in itertools.islice(singles, len(prompt))]) for prompt in prompts]

    async def _run(self, prompts: Sequence[Sequence[Work]]) -> list[RequestOutput]:
        assert self._loop is not None
        works = [work for prompt in prompts for work in prompt]
        gather = Gather(self._loop, len(works))
        streams = [CollectStream(work, self.tokenizer, gather) for work in works]
        try:
            self.open(streams)
            await gather.future
        finally:
            self.drop(streams)
        outputs, rest = [], iter(streams)
        for prompt in prompts:
            own = list(itertools.islice(rest, len(prompt)))
            outputs.append(_request_output(own, [each.completion() for each in own], finished=True))
        return outputs

    def open(self, streams: Sequence[Stream]) -> None:
        """Submit streams; from now on they are pushed to. Raises EngineDeadError or QueueFullError, and then takes none of them."""
        if self._dead:
            raise EngineDeadError(self._dead)
        for stream in streams:
            stream.handle = next(self._handles)
            self.streams[stream.handle] = stream
            self._by_id.setdefault(stream.work.request_id, []).append(stream)
        try:
            for stream in streams:
                self._submit(stream)
        except ChannelFullError:
            self.drop(streams)
            raise QueueFullError("the scheduler is not reading; try again later", 5.0) from None
        for stream in streams:
            if stream.work.deadline_ns:
                self._watch(stream)
        self._count_streams()

    def drop(self, streams: Sequence[Stream]) -> None:
        """Nobody reads these any more: abort those that still run, without telling them."""
        handles = [stream.handle for stream in streams if self.streams.get(stream.handle) is stream]
        if handles:
            self._send_abort(handles)
            for handle in handles:
                stream = self._forget(handle)
                if self.metrics is not None and stream is not None and stream.work.counts:
                    self.metrics.count("request_success", "abort")
            self._count_streams()

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
            self._on_tokens(message)
        else:
            self._on_refused(message)
        if self._status is not None and self._channel is not None:
            self._status[Stat.DROPPED_FRAMES] = self._channel.dropped

    def _on_tokens(self, message: Tokens) -> None:
        """The hot loop: every token of a step for this frontend, straight into its stream."""
        handles = np.frombuffer(message.handles, dtype=np.uint32).tolist()
        indexes = np.frombuffer(message.index, dtype=np.uint32).tolist()
        tokens = np.frombuffer(message.tokens, dtype=np.int32).tolist()
        ends: dict[int, Finished] = {each.handle: each for each in message.finished} if message.finished else {}
        rows = token_rows(message.logprobs) if message.logprobs is not None else None
        for started in message.started:
            stream = self.streams.get(started.handle)
            if stream is not None and stream.started is None:  # a second one is of a scheduler that came after
                stream.started = started
        for each in message.prompt_logprobs:
            self._on_prompt_logprobs(each)
        for each_vector in message.embeddings:
            stream = self.streams.get(each_vector.handle)
            if isinstance(stream, VectorStream):
                stream.vector = each_vector.vector
        get, now, gaps, place = self.streams.get, time.monotonic_ns(), [], -1
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
                    self._end_here(stream)
            except Exception as error:
                # One request's text must not end everybody's.
                log.exception("request %s: its output cannot be handled", stream.work.request_id)
                self._fail(stream, f"its output cannot be handled ({type(error).__name__})")
        for finished in message.finished:
            self._on_finished(finished)
        if self.metrics is not None and gaps:
            self.metrics.observe_gaps(gaps)
        if self._status is not None:
            self._status[Stat.STEPS] += 1

    def _on_finished(self, finished: Finished) -> None:
        stream = self.streams.get(finished.handle)
        if stream is None:
            return
        if finished.reason == FinishReason.ERROR:
            self._end(stream, "error", finished, RequestFailedError(finished.error or "the engine could not finish this request"))
        elif finished.num_output > len(stream.ids):
            self._fail(stream, f"it ended after {finished.num_output} tokens, of which {len(stream.ids)} arrived")
        else:
            self._end(stream, REASONS[finished.reason], finished)

    def _on_refused(self, refused: Refused) -> None:
        stream = self.streams.get(refused.handle)
        if stream is None:
            return
        error: Exception
        if refused.code == RefuseCode.INVALID:
            error = InvalidRequestError(refused.message, refused.param or None)
        elif refused.code == RefuseCode.QUEUE_FULL:
            error = QueueFullError(refused.message, max(refused.retry_after_s, 1.0))
        else:
            error = EngineDeadError(refused.message)
        if self.metrics is not None and refused.code != RefuseCode.INVALID:
            self.metrics.count("admission_rejections", "queue_full" if refused.code == RefuseCode.QUEUE_FULL else "draining")
        self._end(stream, "error", None, error)

    def _on_prompt_logprobs(self, message: PromptLogprobs) -> None:
        stream = self.streams.get(message.handle)
        if stream is not None:
            stream.prompt_rows.update(prompt_rows(message))

    # ends

    def _end_here(self, stream: Stream) -> None:
        self._send_abort([stream.handle])
        self._end(stream, stream.ending)

    def _fail(self, stream: Stream, why: str) -> None:
        self._send_abort([stream.handle])
        self._end(stream, "error", None, RequestFailedError(f"request {stream.work.request_id} failed: {why}"))

    def _end(self, stream: Stream, reason: str, finished: Finished | None = None, error: Exception | None = None) -> None:
        self._forget(stream.handle)
        if self.metrics is not None and stream.work.counts:
            observe(self.metrics, stream, reason, finished)
        if self.spec.config.log.log_requests and stream.work.counts:
            log.info(
                "request %s[%d]: %s after %d + %d tokens",
                stream.work.request_id,
                stream.work.index,
                reason,
                len(stream.work.prompt_ids),
                len(stream.ids),
            )
        try:
            stream.end(reason, finished, error)
        except Exception as failure:
            log.exception("request %s: its end cannot be handled", stream.work.request_id)
            stream.end("error", None, RequestFailedError(f"its output cannot be handled ({type(failure).__name__})"))
        self._count_streams()

    def _watch(self, stream: Stream) -> None:
        assert self._loop is not None
        left = (stream.work.deadline_ns - time.monotonic_ns()) * 1e-9
        stream.timer = self._loop.call_later(max(0.0, left), self._late, stream)

    def _late(self, stream: Stream) -> None:
        self._send_abort([stream.handle])
        whole = (stream.work.deadline_ns - stream.work.arrival_ns) * 1e-9
        self._end(stream, "error", None, DeadlineError(f"the request did not finish within its timeout of {whole:g} s"))

    def _forget(self, handle: int) -> Stream | None:
        stream = self.streams.pop(handle, None)
        if stream is not None:
            self.ended += 1
            if stream.timer is not None:
                stream.timer.cancel()
                stream.timer = None
            siblings = self._by_id[stream.work.request_id]
            siblings.remove(stream)
            if not siblings:
                del self._by_id[stream.work.request_id]
        return stream

    def _count_streams(self) -> None:
        if self._status is not None:
            self._status[Stat.OPEN_STREAMS] = len(self.streams)
        if not self.streams and self.on_idle is not None:
            self.on_idle()


def _joined(singles: list[RequestOutput]) -> RequestOutput:
    """One prompt's completions that were computed one by one."""
    first, *others = singles
    first.outputs.extend(output for other in others for output in other.outputs)
    return first


def _request_output(streams: Sequence[Stream], outputs: list[CompletionOutput], finished: bool) -> RequestOutput:
    first = streams[0]
    return RequestOutput(
        request_id=first.work.request_id,
        prompt=first.work.prompt,
        prompt_token_ids=first.work.prompt_ids,
        prompt_logprobs=first.prompt_logprobs(),
        outputs=outputs,
        finished=finished,
        num_cached_tokens=first.cached_tokens,
        metrics=first.metrics(),
    )

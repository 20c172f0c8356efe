"""`AsyncLLM`: the engine for programs with an event loop: outputs arrive as they grow."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Unpack

from frontend import completing, vectors
from frontend.engine_client import EngineClient
from frontend.outputs import CompletionOutput, EmbeddingRequestOutput, RequestOutput
from frontend.stream import Work
from frontend.tokenizer import Tokenizer
from ipc.arena import EngineStats
from ipc.config import Config, ModelInfo
from ipc.errors import EngineDeadError, InvalidRequestError
from ipc.sampling_params import RequestOutputKind, SamplingParams
from quire import beam_search
from quire import conversations as chats
from quire.beam_search import BeamSearchOutput, BeamSearchParams
from quire.conversations import ChatOptions
from quire.engine import EmbeddedEngine
from quire.prompts import Message, conversations, default_params, one, params_for


class AsyncLLM:
    """One engine, as `LLM`, for use from any event loop: `async with AsyncLLM(...) as llm`, or `await AsyncLLM.start(...)` and `close`.

    Arguments and errors are those of `LLM`. The engine starts when the context is entered.
    """

    _engine: EmbeddedEngine

    def __init__(self, model: str = "", **settings: Any) -> None:
        self._model, self._settings = model, settings

    @classmethod
    async def start(cls, model: str = "", **settings: Any) -> AsyncLLM:
        """A started engine, made without blocking the loop."""
        return await cls(model, **settings).__aenter__()

    def engine_stats(self) -> EngineStats:
        """Requests, KV blocks, prefix hits and tokens so far. Raises EngineDeadError when the engine is gone."""
        return self._engine.stats()

    @property
    def config(self) -> Config:
        """The settings in force."""
        return self._engine.config

    @property
    def model(self) -> ModelInfo:
        """What is known of the model: its name, length, vocabulary size and recommended sampling."""
        return self._engine.model

    async def generate(
        self,
        prompt: str | list[int] | Mapping[str, Any],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
        delta: bool = False,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Complete one prompt; each output holds all text and tokens so far, or with `delta` what is new. The last one is `finished`.
        sampling_params.output_kind says the same, and FINAL_ONLY gives out the last alone.

        Leaving the iterator early aborts the request. Raises InvalidRequestError, QueueFullError, RequestFailedError, EngineDeadError.
        """
        [params] = params_for(1, sampling_params, default_params(self._engine.model))
        name, item = request_id or f"req-{secrets.token_hex(8)}", one(prompt)

        def prepare() -> Awaitable[list[Work]]:
            return self._engine.client.preparer.prepare(item, params, request_id=name, priority=priority, cache_salt=cache_salt)

        async with contextlib.aclosing(self._grow(prepare, params, name, delta)) as outputs:
            async for output in outputs:
                yield output

    async def _grow(
        self, prepare: Callable[[], Awaitable[list[Work]]], params: SamplingParams, name: str, delta: bool
    ) -> AsyncGenerator[RequestOutput, None]:
        """What the engine makes of what `prepare` gives, on its loop, as `params` and `delta` want it."""
        arrivals: asyncio.Queue[RequestOutput | BaseException | None] = asyncio.Queue()
        here = asyncio.get_running_loop()
        whole = _Whole()
        work = self._engine.submit(_pump(self._engine.client, prepare, here, arrivals))
        work.add_done_callback(lambda _: _tell(here, arrivals, None))
        finished = False
        delta = delta or params.output_kind is RequestOutputKind.DELTA
        only_last = params.output_kind is RequestOutputKind.FINAL_ONLY and not delta
        try:
            while (arrived := await arrivals.get()) is not None:
                if isinstance(arrived, BaseException):
                    raise arrived
                finished = arrived.finished
                output = arrived if delta else whole.add(arrived)
                if finished or not only_last:
                    yield output
            if not finished:
                raise EngineDeadError(self._engine.dead or f"request {name} was ended by the engine")
        finally:
            work.cancel()

    async def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        delta: bool = False,
        **options: Unpack[ChatOptions],
    ) -> AsyncGenerator[RequestOutput, None]:
        """Answer one conversation through the model's chat template; otherwise as `generate`. options: as `LLM.chat`'s.

        Each output's `message` is the text so far taken apart, or with `delta` what is new of it.
        """
        talks = conversations(messages)
        if len(talks) > 1:
            raise InvalidRequestError(f"AsyncLLM.chat answers one conversation at a time, got {len(talks)}", "messages")
        [params] = params_for(1, sampling_params, default_params(self._engine.model))
        name = request_id or f"chat-{secrets.token_hex(8)}"
        body, client = chats.request(talks[0] if talks else [], options), self._engine.client
        async with contextlib.aclosing(self._grow(lambda: chats.prepare(client, body, params, name), params, name, delta)) as outputs:
            async for output in outputs:
                yield chats.with_messages(output)

    async def beam_search(self, prompt: str | list[int] | Mapping[str, Any], params: BeamSearchParams) -> BeamSearchOutput:
        """The most likely continuations of one prompt. Cancelling the caller aborts it."""
        search = beam_search.run(self._engine.client, [one(prompt)], params, params.beam_width)
        return (await asyncio.wrap_future(self._engine.submit(search)))[0]

    async def embed(
        self,
        prompt: str | list[int] | Mapping[str, Any],
        *,
        dimensions: int | None = None,
        normalize: bool = True,
        truncate_prompt_tokens: int | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> EmbeddingRequestOutput:
        """One prompt's vector, as `LLM.embed` gives it. Cancelling the caller aborts it."""
        work = vectors.embed(
            self._engine.client,
            one(prompt),
            dimensions=dimensions,
            normalize=normalize,
            truncate_prompt_tokens=truncate_prompt_tokens,
            priority=priority,
            cache_salt=cache_salt,
        )
        return await asyncio.wrap_future(self._engine.submit(work))

    async def abort(self, request_id: str) -> None:
        """Stop a request; its iterator ends with finish reason 'abort'. An unknown id is ignored."""
        await asyncio.wrap_future(self._engine.submit(self._engine.client.abort(request_id)))

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer: encode, decode, apply_chat_template."""
        return self._engine.client.tokenizer

    async def close(self) -> None:
        """End the engine's processes. Happens by itself when the object is collected or the program ends."""
        await asyncio.to_thread(self._engine.close)

    async def __aenter__(self) -> AsyncLLM:
        self._engine = await asyncio.to_thread(EmbeddedEngine, self._model, self._settings)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()


class _Whole:
    """Puts a stream's deltas together. Each output given out is a snapshot that later ones do not change."""

    def __init__(self) -> None:
        self._outputs: dict[int, CompletionOutput] = {}

    def add(self, delta: RequestOutput) -> RequestOutput:
        for new in delta.outputs:
            old = self._outputs.get(new.index)
            if old is None:
                self._outputs[new.index] = new
                continue
            self._outputs[new.index] = CompletionOutput(
                index=new.index,
                text=old.text + new.text,
                token_ids=old.token_ids + new.token_ids,
                logprobs=old.logprobs if new.logprobs is None else [*(old.logprobs or []), *new.logprobs],
                finish_reason=new.finish_reason,
                stop_reason=new.stop_reason,
                message=old.message
                if new.message is None
                else new.message
                if old.message is None
                else old.message.followed_by(new.message),
                reasoning_tokens=old.reasoning_tokens + new.reasoning_tokens,
            )
        delta.outputs = [self._outputs[index] for index in sorted(self._outputs)]
        return delta


async def _pump(
    client: EngineClient,
    prepare: Callable[[], Awaitable[list[Work]]],
    there: asyncio.AbstractEventLoop,
    arrivals: asyncio.Queue[RequestOutput | BaseException | None],
) -> None:
    """Runs on the engine's loop; hands each output over to the caller's."""
    try:
        async with contextlib.aclosing(completing.grow(client, await prepare())) as outputs:
            async for output in outputs:
                _tell(there, arrivals, output)
    except Exception as error:
        _tell(there, arrivals, error)


def _tell(
    loop: asyncio.AbstractEventLoop,
    arrivals: asyncio.Queue[RequestOutput | BaseException | None],
    what: RequestOutput | BaseException | None,
) -> None:
    try:
        loop.call_soon_threadsafe(arrivals.put_nowait, what)
    except RuntimeError:  # the caller's loop has ended, and nobody waits
        pass

"""`LLM`: the engine as a Python object, for programs that have their prompts and wait for the answers."""

from __future__ import annotations

import queue
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, TypeVar, Unpack

from frontend import completing, vectors
from frontend.outputs import EmbeddingRequestOutput, RequestOutput
from frontend.tokenizer import Tokenizer
from ipc.arena import EngineStats
from ipc.config import Config
from ipc.sampling_params import SamplingParams
from quire import beam_search, offline
from quire import conversations as chats
from quire.beam_search import BeamSearchOutput, BeamSearchParams
from quire.conversations import ChatOptions
from quire.engine import EmbeddedEngine
from quire.prompts import Message, Prompts, as_list, conversations, default_params, params_for

Output = TypeVar("Output", RequestOutput, EmbeddingRequestOutput)


class LLM:
    """One engine with its own scheduler and worker processes.

    model: a directory, a hub id, or empty for the bundled demo model. settings: the server's settings by field name, as
    max_model_len=4096; QUIRE_* variables hold for what is not given. Returns when the engine is ready.

    Raises ConfigError for a setting or model that cannot be used, EngineDeadError when a process fails. May be called from any thread and
    from a notebook; it blocks its caller, so inside a running event loop use AsyncLLM.
    """

    def __init__(self, model: str = "", **settings: Any) -> None:
        self._engine = EmbeddedEngine(model, settings)

    def engine_stats(self) -> EngineStats:
        """Requests, KV blocks, prefix hits and tokens so far. Raises EngineDeadError when the engine is gone."""
        return self._engine.stats()

    @property
    def config(self) -> Config:
        """The settings in force."""
        return self._engine.config

    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        priority: int = 0,
        cache_salt: str = "",
    ) -> list[RequestOutput]:
        """Complete one prompt or many (texts or lists of token ids); the outputs are in the order of the prompts.

        sampling_params: one for all prompts or one for each; None takes what the model recommends, with max_tokens 16.
        Raises InvalidRequestError for the first prompt or parameter that cannot be served (the rest of the call is aborted),
        RequestFailedError when the engine gave up on one, EngineDeadError. KeyboardInterrupt aborts the call; the engine stays usable.
        """
        items = as_list(prompts)
        params = params_for(len(items), sampling_params, default_params(self._engine.model))
        client = self._engine.client
        return self._complete(
            lambda index: completing.complete(client, items[index], params[index], priority=priority, cache_salt=cache_salt),
            params,
            use_tqdm,
        )

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        **options: Unpack[ChatOptions],
    ) -> list[RequestOutput]:
        """Answer one conversation or many, through the model's chat template. Otherwise as `generate`.

        options: fields of /v1/chat/completions, see ChatOptions. Each output's `message` is its text taken apart into content, reasoning
        and tool calls. Raises InvalidRequestError also for what would be refused over HTTP, and when the template refuses the messages.
        """
        talks = conversations(messages)
        params = params_for(len(talks), sampling_params, default_params(self._engine.model))
        bodies = [chats.request(talk, options) for talk in talks]
        client = self._engine.client
        return self._complete(lambda index: chats.answer(client, bodies[index], params[index]), params, use_tqdm)

    def embed(
        self,
        prompts: Prompts,
        use_tqdm: bool = True,
        *,
        dimensions: int | None = None,
        normalize: bool = True,
        truncate_prompt_tokens: int | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> list[EmbeddingRequestOutput]:
        """The vector of one prompt or many, in `outputs.embedding`; a prompt may fill the model's whole context.

        dimensions: keep so many of its numbers. normalize: to length 1. truncate_prompt_tokens: keep so many of the prompt's last tokens,
        -1 for the context's length. Raises as `generate` does.
        """
        items, client = as_list(prompts), self._engine.client

        def work(index: int) -> Awaitable[EmbeddingRequestOutput]:
            return vectors.embed(
                client,
                items[index],
                dimensions=dimensions,
                normalize=normalize,
                truncate_prompt_tokens=truncate_prompt_tokens,
                priority=priority,
                cache_salt=cache_salt,
            )

        return self._gather(work, [1] * len(items), use_tqdm, lambda output: 0)

    def beam_search(self, prompts: Prompts, params: BeamSearchParams) -> list[BeamSearchOutput]:
        """The most likely continuations of each prompt. Otherwise as `generate`."""
        limit = offline.in_flight_limit(self._engine.config.scheduler)
        work = self._engine.submit(beam_search.run(self._engine.client, as_list(prompts), params, limit))
        try:
            return work.result()
        except CancelledError:
            self._engine.check()
            raise
        finally:
            work.cancel()

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer: encode, decode, apply_chat_template."""
        return self._engine.client.tokenizer

    def close(self) -> None:
        """End the engine's processes. Happens by itself when the object is collected or the program ends."""
        self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _complete(
        self, work: Callable[[int], Awaitable[RequestOutput]], params: list[SamplingParams], use_tqdm: bool
    ) -> list[RequestOutput]:
        """What work(index) gives for each of params."""
        return self._gather(work, [each.n for each in params], use_tqdm, lambda output: sum(len(each.token_ids) for each in output.outputs))

    def _gather(
        self, work: Callable[[int], Awaitable[Output]], weights: list[int], use_tqdm: bool, num_output: Callable[[Output], int]
    ) -> list[Output]:
        """What work(index) gives on the engine's loop, for each of weights (offline.run), in order."""
        results: offline.Results[Output] = queue.SimpleQueue()
        limit = offline.in_flight_limit(self._engine.config.scheduler)
        running = self._engine.submit(offline.run(work, weights, limit, results))
        # The loop may end without a word to the queue when the engine is closed in another thread.
        running.add_done_callback(lambda _: results.put(None))
        outputs: list[Output | None] = [None] * len(weights)
        try:
            with _Progress(len(weights), use_tqdm) as progress:
                while (result := results.get()) is not None:
                    if isinstance(result, BaseException):
                        raise result
                    index, output = result
                    outputs[index] = output
                    progress.add(len(output.prompt_token_ids), num_output(output))
        finally:
            running.cancel()
        finished = [output for output in outputs if output is not None]
        if len(finished) < len(weights):
            self._engine.check()
        return finished


class _Progress:
    """tqdm's bar with tokens per second; tqdm is imported only if it is wanted."""

    def __init__(self, total: int, wanted: bool) -> None:
        self._bar: Any = None
        self._prompt_tokens = self._output_tokens = 0
        if wanted and total:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, desc="Processed prompts", unit="prompt", dynamic_ncols=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, num_prompt: int, num_output: int) -> None:
        if self._bar is None:
            return
        self._prompt_tokens += num_prompt
        self._output_tokens += num_output
        seconds = max(1e-6, self._bar.format_dict["elapsed"])
        rates = f"input {self._prompt_tokens / seconds:.1f} tok/s, output {self._output_tokens / seconds:.1f} tok/s"
        self._bar.set_postfix_str(rates, refresh=False)
        self._bar.update(1)

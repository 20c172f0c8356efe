"""The client against a scheduler played by hand: what it sends, and what it makes of what comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from frontend import completing
from frontend.engine_client import EngineClient
from frontend.metrics import Metrics
from frontend.outputs import RequestOutput
from frontend.tokenizer import Tokenizer
from ipc.channels import Channel
from ipc.config import ChildSpec, Config, ModelInfo
from ipc.errors import EngineDeadError, InvalidRequestError, QueueFullError, RequestFailedError
from ipc.messages import (
    Abort,
    Finished,
    FinishReason,
    FrontendToScheduler,
    Logprobs,
    PromptLogprobs,
    RefuseCode,
    Refused,
    Started,
    Submit,
    Tokens,
)
from ipc.sampling_params import SamplingParams
from tests.frontend import backends

PATIENCE = 60.0


class Scheduler:
    """The other end of the channel: keeps what the client sends, says what the test tells it to."""

    def __init__(self, context: Any, spec: ChildSpec, epoch: int) -> None:
        self.heard: list[Submit | Abort] = []
        self.peer = spec.identity
        self._news = asyncio.Event()
        self.channel: Channel[Any] = Channel.router(context, spec.address("frontends", epoch), FrontendToScheduler, epoch)
        self.channel.attach(asyncio.get_running_loop(), self._on_message)

    def _on_message(self, _peer: str, message: Any) -> None:
        self.heard.append(message)
        self._news.set()

    async def wait(self, kind: type, count: int = 1) -> Any:
        """The count-th message of this kind."""
        async with asyncio.timeout(PATIENCE):
            while len([each for each in self.heard if isinstance(each, kind)]) < count:
                self._news.clear()
                await self._news.wait()
        return [each for each in self.heard if isinstance(each, kind)][count - 1]

    def tokens(self, *triples: tuple[int, int, int], **more: Any) -> None:
        """Send (handle, index, token) as one message."""
        columns = np.array(triples or np.zeros((0, 3)), dtype=np.int64).T
        self.channel.send(
            Tokens(
                0,
                0,
                columns[0].astype(np.uint32).tobytes(),
                columns[1].astype(np.uint32).tobytes(),
                columns[2].astype(np.int32).tobytes(),
                **more,
            ),
            self.peer,
        )


Scenario = Callable[[EngineClient, Scheduler], Coroutine[Any, Any, None]]


def play(tmp_path: Path, scenario: Scenario) -> None:
    """Run a scenario with a connected client and scheduler."""

    async def go() -> None:
        tokenizer = backends.byte_level()
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        model = ModelInfo(
            path=str(tmp_path),
            tokenizer_path=str(tmp_path),
            name="m",
            architecture="",
            vocab_size=tokenizer.get_vocab_size(),
            max_model_len=100,
            eos_token_ids=[0],
        )
        spec = ChildSpec(
            role="frontend",
            index=0,
            epoch=7,
            scheduler_epoch=1,
            runtime_dir=str(tmp_path),
            device="cpu",
            config=Config(),
            model=model,
            fds={},
        )
        context: Any = zmq.Context()
        scheduler = Scheduler(context, spec, 1)
        client = EngineClient(spec, context, metrics=Metrics(str(tmp_path), 0))
        await client.start()
        try:
            await scenario(client, scheduler)
            assert not client._live.by_handle and not client._live._by_id, "a stream was left behind"
        finally:
            client.close()
            scheduler.channel.close()
            context.destroy(linger=0)

    asyncio.run(go())


def done(handle: int, count: int, reason: FinishReason = FinishReason.LENGTH, **more: Any) -> Finished:
    return Finished(handle=handle, reason=reason, num_output=count, **more)


def ids_of(message: Submit, what: str = "prompt") -> list[int]:
    return list(np.frombuffer(getattr(message, what), np.int32))


def test_a_submit_says_everything(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, scheduler: Scheduler) -> None:
        params = SamplingParams(max_tokens=500, seed=5, bad_words=["fox"], temperature=0.5)
        task = asyncio.create_task(completing.complete(client, "hello world", params, request_id="r1", priority=3, cache_salt="s"))
        submit = await scheduler.wait(Submit)
        assert (submit.request_id, submit.seed, submit.priority, submit.cache_salt) == ("r1", 5, 3, "s")
        assert ids_of(submit) == client.tokenizer.encode("hello world")
        assert submit.params.max_tokens == 100 - len(ids_of(submit)), "the window is a bound, too"
        assert sorted(client.tokenizer.decode(word) for word in submit.bad_words) == [" fox", "fox"]
        started = Started(submit.handle, num_cached=3, queued_ns=5)
        scheduler.tokens((submit.handle, 0, 10), finished=[done(submit.handle, 1, num_prompt=4)], started=[started])
        output = await task
        assert output.outputs[0].token_ids == [10] and output.num_cached_tokens == 3 and output.finished

    play(tmp_path, scenario)


def test_n_completions_have_seeds_that_follow_from_the_first(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, scheduler: Scheduler) -> None:
        seeds = []
        for number in range(2):
            task = asyncio.create_task(completing.complete(client, [5], SamplingParams(n=3, seed=5)))
            submits = [await scheduler.wait(Submit, number * 3 + place) for place in (1, 2, 3)]
            seeds.append([submit.seed for submit in submits])
            for place, submit in enumerate(submits):
                scheduler.tokens((submit.handle, 0, 10 + place), finished=[done(submit.handle, 1)])
            output = await task
            assert [(each.index, each.token_ids) for each in output.outputs] == [(0, [10]), (1, [11]), (2, [12])]
        assert seeds[0] == seeds[1] and seeds[0][0] == 5 and len(set(seeds[0])) == 3

    play(tmp_path, scenario)


def test_what_comes_twice_counts_once(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, scheduler: Scheduler) -> None:
        task = asyncio.create_task(completing.complete(client, [5], SamplingParams()))
        handle = (await scheduler.wait(Submit)).handle
        scheduler.tokens((handle, 0, 10), (handle, 1, 11))
        scheduler.tokens((handle, 0, 10), (handle, 1, 11), (handle, 2, 12), (99, 0, 1), finished=[done(handle, 3), done(98, 1)])
        assert (await task).outputs[0].token_ids == [10, 11, 12]

    play(tmp_path, scenario)


@pytest.mark.parametrize("kind", ["gap", "short"])
def test_lost_tokens_are_an_error_of_that_request(tmp_path: Path, kind: str) -> None:
    async def scenario(client: EngineClient, scheduler: Scheduler) -> None:
        broken = asyncio.create_task(completing.complete(client, [5], SamplingParams()))
        other = asyncio.create_task(completing.complete(client, [6], SamplingParams()))
        first, second = await scheduler.wait(Submit, 1), await scheduler.wait(Submit, 2)
        if kind == "gap":
            scheduler.tokens((first.handle, 1, 10), (second.handle, 0, 11), finished=[done(second.handle, 1)])
        else:
            scheduler.tokens((second.handle, 0, 11), finished=[done(first.handle, 2), done(second.handle, 1)])
        with pytest.raises(RequestFailedError):
            await broken
        assert (await other).outputs[0].token_ids == [11]
        assert (await scheduler.wait(Abort)).handles == [first.handle]

    play(tmp_path, scenario)


def test_a_new_scheduler_gets_prompt_and_emitted_tokens(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, scheduler: Scheduler) -> None:
        task = asyncio.create_task(completing.complete(client, "hello", SamplingParams()))
        old = await scheduler.wait(Submit)
        scheduler.tokens((old.handle, 0, 10), (old.handle, 1, 11), started=[Started(old.handle, num_cached=2, queued_ns=5)])
        while not client._live.by_handle[old.handle].ids:
            await asyncio.sleep(0.01)
        successor = Scheduler(client._context, client.spec, 2)
        client.scheduler_changed(2)
        client.scheduler_changed(2)
        new = await successor.wait(Submit)
        assert (new.handle, new.prompt, new.seed, new.arrival_ns) == (old.handle, old.prompt, old.seed, old.arrival_ns)
        assert ids_of(new, "emitted") == [10, 11]
        scheduler.tokens((old.handle, 2, 99))  # the dead one's last words
        successor.tokens((new.handle, 2, 12), finished=[done(new.handle, 3)], started=[Started(new.handle, num_cached=0, queued_ns=9)])
        output = await task
        assert output.outputs[0].token_ids == [10, 11, 12]
        assert output.num_cached_tokens == 2, "what its first tokens cost counts"
        assert len(successor.heard) == 1, "submitted twice"
        successor.channel.close()

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "refused, error",
    [
        (Refused(1, RefuseCode.INVALID, "too long", "prompt"), InvalidRequestError),
        (Refused(1, RefuseCode.QUEUE_FULL, "full", "", 7.0), QueueFullError),
        (Refused(1, RefuseCode.DRAINING, "bye"), EngineDeadError),
    ],
)
def test_refusals(tmp_path: Path, refused: Refused, error: type[Exception]) -> None:
    async def scenario(client: EngineClient, scheduler: Scheduler) -> None:
        task = asyncio.create_task(completing.complete(client, [5], SamplingParams(n=2)))
        first, second = await scheduler.wait(Submit, 1), await scheduler.wait(Submit, 2)
        assert first.handle == 1
        scheduler.channel.send(refused, scheduler.peer)
        with pytest.raises(error) as caught:
            await task
        if isinstance(caught.value, QueueFullError):
            assert caught.value.retry_after == 7.0
        assert (await scheduler.wait(Abort)).handles == [second.handle], "its sibling must not run on"

    play(tmp_path, scenario)


def test_an_error_of_the_engine(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, scheduler: Scheduler) -> None:
        task = asyncio.create_task(completing.complete(client, [5], SamplingParams()))
        handle = (await scheduler.wait(Submit)).handle
        scheduler.tokens(finished=[done(handle, 0, FinishReason.ERROR, error="its logits were not finite")])
        with pytest.raises(RequestFailedError, match="not finite"):
            await task

    play(tmp_path, scenario)


def test_cancelling_and_aborting(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, scheduler: Scheduler) -> None:
        task = asyncio.create_task(completing.complete(client, [5], SamplingParams()))
        cancelled = (await scheduler.wait(Submit)).handle
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await scheduler.wait(Abort)).handles == [cancelled]
        task = asyncio.create_task(completing.complete(client, "hello", SamplingParams(), request_id="mine"))
        handle = (await scheduler.wait(Submit, 2)).handle
        scheduler.tokens((handle, 0, client.tokenizer.encode("hello")[0]))
        while not client._live.by_handle[handle].ids:
            await asyncio.sleep(0.01)
        await client.abort("mine")
        await client.abort("nobody's")
        output = (await task).outputs[0]
        assert output.finish_reason == "abort" and len(output.token_ids) == 1 and output.text
        assert (await scheduler.wait(Abort, 2)).handles == [handle]

    play(tmp_path, scenario)


async def collect(source: AsyncIterator[RequestOutput]) -> list[RequestOutput]:
    return [item async for item in source]


def test_a_stream_gives_only_what_is_new(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, scheduler: Scheduler) -> None:
        ids = client.tokenizer.encode("hello naïve 😀 world", add_special_tokens=False)
        works = await client.preparer.prepare([5], SamplingParams(n=2, stop=["wor"], logprobs=0))
        task = asyncio.create_task(collect(completing.grow(client, works)))
        first, second = (await scheduler.wait(Submit, 1)).handle, (await scheduler.wait(Submit, 2)).handle
        for place, token in enumerate(ids):
            row = Logprobs(np.uint32([0]).tobytes(), np.float32([-place - 1]).tobytes(), np.int32([1]).tobytes(), 0, b"", b"")
            scheduler.tokens((first, place, token), logprobs=row)
            while first in client._live.by_handle and len(client._live.by_handle[first].ids) <= place:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.001)  # the reader takes it before the next one comes
        scheduler.tokens((second, 0, 0), finished=[done(second, 1, FinishReason.STOP, stop_token=0)])
        items = await task
        outputs = [each for item in items for each in item.outputs if each.index == 0]
        assert "".join(each.text for each in outputs) == "hello naïve 😀 "
        assert all("\ufffd" not in each.text for each in outputs) and len(outputs) > 5
        emitted = [token for each in outputs for token in each.token_ids]
        assert emitted == ids[: len(emitted)]
        assert [entry[token].logprob for each in outputs for token, entry in zip(each.token_ids, each.logprobs or [])] == [
            -place - 1 for place in range(len(emitted))
        ]
        assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", "wor")
        last = next(each for item in items for each in item.outputs if each.index == 1)
        assert (last.text, last.token_ids, last.finish_reason, last.stop_reason) == ("", [0], "stop", None)
        assert [item.finished for item in items] == [False] * (len(items) - 1) + [True]
        assert (await scheduler.wait(Abort)).handles == [first]

    play(tmp_path, scenario)


def test_leaving_a_stream_aborts(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, scheduler: Scheduler) -> None:
        source = completing.grow(client, await client.preparer.prepare([5], SamplingParams()))
        task = asyncio.ensure_future(anext(source))
        handle = (await scheduler.wait(Submit)).handle
        scheduler.tokens((handle, 0, 10))
        await task
        await source.aclose()
        assert (await scheduler.wait(Abort)).handles == [handle]

    play(tmp_path, scenario)


def test_prompt_logprobs_in_pieces(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, scheduler: Scheduler) -> None:
        task = asyncio.create_task(completing.complete(client, [5, 6, 7], SamplingParams(prompt_logprobs=1)))
        handle = (await scheduler.wait(Submit)).handle
        for position in (1, 2):
            columns = np.float32([-position]).tobytes(), np.int32([4]).tobytes()
            tops = np.int32([50 + position]).tobytes(), np.float32([-0.5]).tobytes()
            scheduler.tokens(prompt_logprobs=[PromptLogprobs(handle, position, *columns, 1, *tops)])
        scheduler.tokens((handle, 0, 10), finished=[done(handle, 1)])
        entries = (await task).prompt_logprobs
        assert entries is not None and entries[0] is None and len(entries) == 3
        assert entries[1] is not None and entries[1][6].logprob == -1.0 and entries[1][6].rank == 4
        assert entries[2] is not None and entries[2][52].logprob == -0.5 and entries[2][52].rank == 1

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "prompt, params",
    [
        ("", SamplingParams()),
        ([], SamplingParams()),
        ([10**6], SamplingParams()),
        ([-1], SamplingParams()),
        ([1] * 100, SamplingParams()),
        ("x", SamplingParams(n=0)),
        ("x", SamplingParams(stop_token_ids=[10**6])),
        ("x", SamplingParams(bad_words=[f"{place} word " * 100 for place in range(20)])),
        ("\ud800", SamplingParams()),
    ],
)
def test_refused_before_it_is_sent(tmp_path: Path, prompt: str | list[int], params: SamplingParams) -> None:
    async def scenario(client: EngineClient, scheduler: Scheduler) -> None:
        with pytest.raises(InvalidRequestError):
            await completing.complete(client, prompt, params)
        await asyncio.sleep(0.02)
        assert not scheduler.heard

    play(tmp_path, scenario)


def test_a_dead_engine(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, scheduler: Scheduler) -> None:
        task = asyncio.create_task(completing.complete(client, [5], SamplingParams()))
        await scheduler.wait(Submit)
        client.engine_died("the worker ended")
        for waiting in (task, completing.complete(client, [5], SamplingParams())):
            with pytest.raises(EngineDeadError, match="the worker ended"):
                await waiting

    play(tmp_path, scenario)


def test_a_bug_in_one_streams_text_ends_that_stream_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        pending = False

        def feed(self, token: int) -> str:
            raise KeyError(token)

        def finish(self) -> str:
            return ""

    async def scenario(client: EngineClient, scheduler: Scheduler) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Tokenizer, "detokenizer", lambda *_: Broken())
            broken = asyncio.create_task(completing.complete(client, [5], SamplingParams(stop=["x"])))
            first = (await scheduler.wait(Submit, 1)).handle
        other = asyncio.create_task(completing.complete(client, [5], SamplingParams()))
        second = (await scheduler.wait(Submit, 2)).handle
        scheduler.tokens((first, 0, 10), (second, 0, 11), finished=[done(second, 1)])
        with pytest.raises(RequestFailedError):
            await broken
        assert (await other).outputs[0].token_ids == [11]

    play(tmp_path, scenario)

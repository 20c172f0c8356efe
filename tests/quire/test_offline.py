"""Batches: order, the bound on requests in flight, patience with a full queue, and errors; with a client of the test's own."""

from __future__ import annotations

import asyncio
import queue
from typing import Any

from frontend.outputs import RequestOutput
from ipc.config import SchedulerConfig
from ipc.errors import InvalidRequestError, QueueFullError
from ipc.sampling_params import SamplingParams
from quire import offline


class Client:
    def __init__(self) -> None:
        self.running = self.most = self.aborted = 0
        self.refusals = 0

    async def complete(self, prompt: Any, params: SamplingParams, **_: Any) -> RequestOutput:
        if self.refusals:
            self.refusals -= 1
            raise QueueFullError("full", 0.0)
        if prompt == "bad":
            raise InvalidRequestError("bad prompt", "prompt")
        self.running += params.n
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0.01 if prompt != "slow" else 60)
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        finally:
            self.running -= params.n
        return RequestOutput("id", prompt, [], None, [], True)


def run(client: Client, prompts: list[Any], params: list[SamplingParams], limit: int) -> list[Any]:
    results: offline.Results[RequestOutput] = queue.SimpleQueue()
    asyncio.run(offline.run(lambda index: client.complete(prompts[index], params[index]), [each.n for each in params], limit, results))
    found = []
    while not results.empty():
        found.append(results.get())
    return found


def test_all_are_done_and_few_at_a_time() -> None:
    client = Client()
    found = run(client, [f"p{i}" for i in range(20)], [SamplingParams(n=1 + i % 3) for i in range(20)], 5)
    assert found[-1] is None
    assert sorted((index, output.prompt) for index, output in found[:-1]) == sorted((i, f"p{i}") for i in range(20))
    assert 3 <= client.most <= 5


def test_one_prompt_may_be_larger_than_the_bound() -> None:
    assert len(run(Client(), ["a", "b"], [SamplingParams(n=9)] * 2, 4)) == 3


def test_a_full_queue_is_waited_for() -> None:
    client = Client()
    client.refusals = 2
    assert [type(each) for each in run(client, ["a"], [SamplingParams()], 4)] == [tuple, type(None)]


def test_the_first_error_ends_the_batch_and_aborts_the_rest() -> None:
    client = Client()
    found = run(client, ["slow", "slow", "bad"], [SamplingParams()] * 3, 8)
    assert isinstance(found[-1], InvalidRequestError)
    assert client.aborted == 2


def test_the_bound_follows_the_settings() -> None:
    assert offline.in_flight_limit(SchedulerConfig(max_num_seqs=10)) == 20
    assert offline.in_flight_limit(SchedulerConfig(max_num_seqs=10, max_queued_requests=3)) == 3


def test_nothing_to_do() -> None:
    assert run(Client(), [], [], 4) == [None]

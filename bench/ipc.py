"""Round trip of a step's doorbells between two processes over the product's channels, and one-way throughput.

    python -m bench.ipc [--rounds 2000] [--messages 50000] [--json]

The parent is a scheduler's ROUTER on a uvloop, the child a worker's DEALER: StepPlan there, StepResult back, one at a time; then as many
StepPlans as fit, answered once at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from typing import Any

import numpy as np
import uvloop
import zmq

from bench.child import start
from ipc.channels import Channel
from ipc.messages import SchedulerToWorker, StepPlan, StepResult, WorkerReady, WorkerToScheduler

EPOCH = 1
CHILD = "worker.0.2"
WARM_UP = 100
# Within the channels' high-water mark, so that nothing waits for a retry timer.
WINDOW = 5_000
ECHO, COUNT, END = 0, 1, 2  # what the slot field asks of the child here


async def child(address: str) -> None:
    """Answer each echo; answer a window of counted messages at its end."""
    context: Any = zmq.Context()
    channel: Channel[Any] = Channel.dealer(context, address, CHILD, SchedulerToWorker, EPOCH)
    done = asyncio.Event()

    def handle(_peer: str, message: StepPlan) -> None:
        if message.step < 0:
            done.set()
        elif message.slot != COUNT:
            channel.send(StepResult(message.step, message.slot))

    channel.attach(asyncio.get_running_loop(), handle)
    channel.send(WorkerReady(0, 0, 0))
    await done.wait()
    channel.close()
    context.destroy(linger=0)


async def parent(rounds: int, messages: int) -> dict[str, float]:
    """Percentiles in microseconds and messages per second."""
    with tempfile.TemporaryDirectory() as directory:
        address = f"ipc://{directory}/bench"
        context: Any = zmq.Context()
        channel: Channel[Any] = Channel.router(context, address, WorkerToScheduler, EPOCH)
        news: asyncio.Queue[Any] = asyncio.Queue()
        times: list[int] = []
        began = 0
        finished = asyncio.get_running_loop().create_future()

        def ping() -> None:
            nonlocal began
            began = time.perf_counter_ns()
            channel.send(StepPlan(len(times), ECHO), CHILD)

        def handle(_peer: str, message: Any) -> None:
            if not isinstance(message, StepResult) or message.slot != ECHO:
                news.put_nowait(message)
                return
            times.append(time.perf_counter_ns() - began)
            if len(times) < rounds + WARM_UP:
                ping()
            else:
                finished.set_result(None)

        channel.attach(asyncio.get_running_loop(), handle)
        process = start([sys.executable, "-m", "bench.ipc", "--child", address], env=os.environ)
        try:
            await asyncio.wait_for(news.get(), 20)
            used = time.thread_time_ns()
            ping()
            await asyncio.wait_for(finished, 120)
            used = time.thread_time_ns() - used
            rate = await throughput(channel, news, messages)
        finally:
            channel.send(StepPlan(-1, END), CHILD)
            process.wait(10)
            channel.close()
            context.destroy(linger=0)
    trips = np.array(times[WARM_UP:]) / 1000
    return {
        "round_trip_us_p50": round(float(np.median(trips)), 1),
        "round_trip_us_p99": round(float(np.percentile(trips, 99)), 1),
        "scheduler_cpu_us": round(used / 1000 / len(times), 1),
        "messages_per_s": round(rate),
    }


async def throughput(channel: Channel[Any], news: asyncio.Queue[Any], messages: int) -> float:
    """Messages per second that leave here, arrive there and are decoded."""
    began = time.perf_counter()
    windows = max(messages // WINDOW, 1)
    for _ in range(windows):
        for number in range(WINDOW - 1):
            channel.send(StepPlan(number, COUNT), CHILD)
        channel.send(StepPlan(WINDOW, END), CHILD)
        await asyncio.wait_for(news.get(), 60)
    return windows * WINDOW / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000, help="round trips measured")
    parser.add_argument("--messages", type=int, default=50_000, help="messages sent one way")
    parser.add_argument("--json", action="store_true", help="also print the results as one line of JSON, last")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        uvloop.run(child(arguments.child))
        return
    result = uvloop.run(parent(arguments.rounds, arguments.messages))
    print(
        "round trip p50 {round_trip_us_p50} us, p99 {round_trip_us_p99} us, "
        "{scheduler_cpu_us} us of the scheduler's thread; "
        "{messages_per_s} messages/s one way".format(**result)
    )
    if arguments.json:
        print(json.dumps({"results": [result]}))


if __name__ == "__main__":
    main()

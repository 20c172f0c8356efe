"""What one token costs in a frontend: the scheduler's Tokens message in, framed SSE bytes out.

    python -m bench.frontend [--streams 256,1024] [--steps 200] [--kinds plain,stop,logprobs] [--json]

Included: decoding the message, detokenizing, JSON, SSE and chunked framing, metrics. Left out: the socket write; the transport keeps
nothing. Kinds: plain text; stop (two stop strings that never match); logprobs (two alternatives per token). Text is English with some
accents and emoji, so that some characters span tokens. CPU seconds are the process's own.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zmq

from frontend.engine_client import EngineClient
from frontend.generation import Answer
from frontend.handlers.chat import SHAPE
from frontend.metrics import Metrics
from frontend.sse import SseResponse, SseStream, Usage
from frontend.stream import Work
from frontend.tokenizer import Tokenizer
from ipc import model_info
from ipc.channels import Channel
from ipc.config import ChildSpec, Config
from ipc.messages import Logprobs, SchedulerToFrontend, Tokens
from ipc.sampling_params import SamplingParams

MODEL = Path(__file__).resolve().parent.parent / "quire" / "demo_model"
TEXT = (
    'The river rose in the night, and by morning the lower fields were a lake. "Nobody crosses today," said the ferryman. '
    "He lit his pipe, put the kettle on, and counted: 1, 2, 3 ... 117 sheep on the far bank. Café, naïve, 😀 and so on.\n"
    "\tThen it stopped.\n"
)
KINDS = {
    "plain": SamplingParams(max_tokens=None),
    "stop": SamplingParams(max_tokens=None, stop=["\n\nHuman:", "</answer>"]),
    "logprobs": SamplingParams(max_tokens=None, logprobs=2),
}


class CountingSink:
    """A transport that is always ready."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: bytes) -> None:
        self.size += len(data)


class KeepingSink(CountingSink):
    """One that also keeps what it got, to be read back."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""

    def write(self, data: bytes) -> None:
        super().write(data)
        self.data += data

    def text(self) -> str:
        """The contents of all frames together."""
        lines = [line[6:] for line in self.data.split(b"\n") if line.startswith(b"data: ")]
        return "".join(json.loads(line)["choices"][0]["delta"]["content"] for line in lines)


def messages(ids: list[int], streams: int, steps: int, logprobs: bool) -> list[bytes]:
    """One encoded Tokens message per step; each stream is at its own place in the text."""
    handles = np.arange(1, streams + 1, dtype=np.uint32)
    text = np.array(ids, dtype=np.int32)
    encoder = msgspec.msgpack.Encoder()
    found = []
    for step in range(steps):
        tokens = text[(handles.astype(np.int64) * 7 + step) % len(text)]
        columns = None
        if logprobs:
            values = np.full(streams, -0.5, np.float32)
            tops = np.stack([tokens, tokens + 1], axis=1).astype(np.int32)
            columns = Logprobs(
                at=np.arange(streams, dtype=np.uint32).tobytes(),
                logprob=values.tobytes(),
                rank=np.ones(streams, np.int32).tobytes(),
                width=2,
                top_ids=tops.tobytes(),
                top_logprobs=np.stack([values, values - 1], axis=1).tobytes(),
            )
        index = np.full(streams, step, np.uint32)
        found.append(encoder.encode(Tokens(step, 0, handles.tobytes(), index.tobytes(), tokens.tobytes(), [], columns)))
    return found


async def measure(kind: str, count: int, steps: int) -> dict[str, Any]:
    """One configuration; raises AssertionError if what comes out is not the text that went in."""
    loop = asyncio.get_running_loop()
    config = Config()
    with tempfile.TemporaryDirectory() as directory:
        model = model_info.read(str(MODEL), config.model, "demo")
        spec = ChildSpec(
            role="frontend", index=0, epoch=2, scheduler_epoch=1, runtime_dir=directory, device="cpu", config=config, model=model, fds={}
        )
        context: Any = zmq.Context()
        client = EngineClient(spec, context, None, loop, Metrics(directory, 0))
        client.tokenizer = Tokenizer.load(model.tokenizer_path)
        # Never connected to anything: submits wait in its queue, messages are handed over below.
        client._channel = Channel.dealer(context, spec.address("frontends"), spec.identity, SchedulerToFrontend, 1)
        ids = client.tokenizer.encode(TEXT)
        sinks: list[CountingSink] = []
        streams = []
        for number in range(count):
            work = Work(request_id=f"r{number}", index=0, prompt=None, prompt_ids=[1], params=KINDS[kind], seed=0, arrival_ns=0)
            answer = Answer(f"chatcmpl-{number:028x}", "demo", [[work]], SHAPE)
            response, sink = SseResponse(loop), CountingSink() if number else KeepingSink()
            streams.append(SseStream(work, client.tokenizer, response, SHAPE, answer.prefix(0), 0, Usage(1)))
            response.open(sink)
            sinks.append(sink)
        client.open(streams)
        raw = messages(ids, count, steps, kind == "logprobs")
        decoder = msgspec.msgpack.Decoder(SchedulerToFrontend)
        for each in raw[: steps // 10]:
            client._on_message("", decoder.decode(each))
        gc.collect()
        gc.freeze()
        began, wall = time.process_time(), time.perf_counter()
        for each in raw[steps // 10 :]:
            client._on_message("", decoder.decode(each))
        cpu, wall = time.process_time() - began, time.perf_counter() - wall
        assert all(len(stream.ids) == steps for stream in streams)
        first = sinks[0]
        assert isinstance(first, KeepingSink)
        assert client.tokenizer.decode(streams[0].ids).startswith(first.text()) and first.text()
        tokens = count * (steps - steps // 10)
        client.close()
        context.destroy(linger=0)
        return {
            "kind": kind,
            "streams": count,
            "tokens": tokens,
            "tokens_per_cpu_second": round(tokens / cpu),
            "us_per_token": round(cpu / tokens * 1e6, 2),
            "wall_s": round(wall, 3),
            "bytes_per_token": round(sum(sink.size for sink in sinks) / (count * steps), 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="256,1024")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kinds", default="plain,stop,logprobs")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args()
    results = []
    for kind in arguments.kinds.split(","):
        for count in map(int, arguments.streams.split(",")):
            result = asyncio.run(measure(kind, count, arguments.steps))
            results.append(result)
            print(
                f"{kind:9} {count:5} streams: {result['tokens_per_cpu_second']:9,} tokens per CPU second, "
                f"{result['us_per_token']:5.2f} us and {result['bytes_per_token']:.0f} bytes per token"
            )
    if arguments.json:
        print(json.dumps({"bench": "frontend", "results": results}))


if __name__ == "__main__":
    main()

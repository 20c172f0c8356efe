"""The `quire bench` commands: serve (a running server), throughput and latency (an engine in this process)."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from typing import Any

from ipc.errors import ConfigError
from quire.benchmarks import report, workload
from quire.benchmarks.client import LoadClient
from quire.benchmarks.report import RequestTiming
from quire.benchmarks.workload import BenchRequest, Workload


def add_commands(commands: Any) -> None:
    """Add the sub-commands to an argparse sub-parsers object; each sets `run`, a function of the parsed arguments."""
    serve = commands.add_parser("serve", help="load a running OpenAI-compatible server and measure TTFT and inter-token times")
    serve.add_argument("--url", default="http://127.0.0.1:8000", help="root of the server (default %(default)s)")
    serve.add_argument("--model", default="", help="model name; default: the first one the server lists")
    serve.add_argument("--api-key", default="", help="key sent as a bearer token")
    serve.add_argument("--concurrency", default="1,8,32", help="closed loop: requests in flight, one run for each (default %(default)s)")
    serve.add_argument("--request-rate", type=float, help="open loop instead: mean arrivals per second")
    serve.add_argument("--extra-body", default="{}", help="JSON object merged into every request")
    serve.set_defaults(run=_run_serve)
    throughput = commands.add_parser("throughput", help="offline: all requests at once through LLM.generate")
    throughput.set_defaults(run=_run_throughput)
    latency = commands.add_parser("latency", help="offline: one request at a time, TTFT and inter-token times")
    latency.set_defaults(run=_run_latency)
    for parser in (serve, throughput, latency):
        _add_workload_flags(parser)
    for parser in (throughput, latency):
        parser.add_argument("--model", default="", help="model directory or hub id; default: the bundled model")
        parser.add_argument(
            "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of `quire serve`, such as --set max_num_seqs=64"
        )


def _add_workload_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workload", help="JSON file of requests; default: random token ids of the lengths below")
    parser.add_argument("--num-prompts", type=int, help="requests per run (default: 64, or the whole file)")
    parser.add_argument("--input-len", type=int, default=128, help="prompt tokens of a random request (default %(default)s)")
    parser.add_argument("--output-len", type=int, default=64, help="output tokens of a random request (default %(default)s)")
    parser.add_argument("--shared-prefix", type=int, default=0, help="prompt tokens that all random requests share")
    parser.add_argument("--vocab", type=int, default=4096, help="token ids are drawn below this (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=1, help="runs; each shifts the token ids, so no cache can answer")
    parser.add_argument("--output-json", help="file the results are added to; default: one line on stdout")


def _workload(arguments: argparse.Namespace) -> Workload:
    """The requests. Raises ConfigError for them and for what else would be found wrong only after the measurement."""
    for name in ("repeat", "num_prompts"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if arguments.output_json:
        report.earlier_runs(arguments.output_json)
    if arguments.workload:
        return workload.from_file(arguments.workload, arguments.num_prompts)
    return workload.random_tokens(
        arguments.num_prompts or 64, arguments.input_len, arguments.output_len, arguments.vocab, arguments.seed, arguments.shared_prefix
    )


def _shifted(load: Workload, repeat: int, vocab_size: int) -> list[BenchRequest]:
    """The same lengths with other token ids; text prompts stay as they are."""
    if not repeat:
        return load.requests
    first = workload.FIRST_ORDINARY_TOKEN
    width = vocab_size - first

    def shift(prompt: list[int] | str) -> list[int] | str:
        return prompt if isinstance(prompt, str) else [(token - first + repeat * 7919) % width + first for token in prompt]

    return [BenchRequest(shift(request.prompt), request.output_len) for request in load.requests]


def _finish(arguments: argparse.Namespace, kind: str, settings: dict[str, Any], timings: list[RequestTiming], wall_s: float) -> int:
    """Print and store one run; the number of failed requests."""
    summary = report.summarize(timings, wall_s)
    report.print_table(f"{kind} {settings}", summary)
    report.write(arguments.output_json, {"kind": kind, "settings": settings, "summary": summary, "environment": report.environment()})
    return int(summary["failed"])


def _run_serve(arguments: argparse.Namespace) -> int:
    try:
        extra = json.loads(arguments.extra_body)
        levels = [int(level) for level in arguments.concurrency.split(",")]
    except ValueError as error:
        raise ConfigError(f"--extra-body must be a JSON object and --concurrency integers separated by commas: {error}") from None
    if not isinstance(extra, dict) or min(levels) < 1:
        raise ConfigError("--extra-body must be a JSON object and --concurrency at least 1")
    rate = arguments.request_rate
    if rate is not None and not 0 < rate < math.inf:
        raise ConfigError(f"--request-rate must be above 0, got {rate}")
    load = _workload(arguments)

    async def measure() -> int:
        failed = 0
        async with LoadClient(arguments.url, arguments.model, extra, arguments.api_key) as probe:
            model = arguments.model or (await probe.first_model())[0]
        async with LoadClient(arguments.url, model, extra, arguments.api_key) as client:
            await client.closed_loop([BenchRequest(request.prompt, 4) for request in load.requests[-2:]], 1)
            for repeat in range(arguments.repeat):
                for number, level in enumerate(levels if rate is None else [0]):
                    requests = _shifted(load, 1 + repeat * len(levels) + number, arguments.vocab)
                    settings: dict[str, Any] = {"workload": load.name, "repeat": repeat}
                    if rate is not None:
                        timings, wall_s = await client.open_loop(requests, rate, arguments.seed)
                        settings["request_rate"] = rate
                    else:
                        timings, wall_s = await client.closed_loop(requests, level)
                        settings["concurrency"] = level
                    failed += _finish(arguments, "serve", settings, timings, wall_s)
        return failed

    import uvloop

    return 1 if uvloop.run(measure()) else 0


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """--set NAME=VALUE pairs as config values, each read as JSON where it is JSON."""
    settings: dict[str, Any] = {}
    for pair in arguments.set:
        name, separator, text = pair.partition("=")
        if not separator:
            raise ConfigError(f"--set takes NAME=VALUE, got {pair!r}")
        try:
            settings[name.replace("-", "_")] = json.loads(text)
        except ValueError:
            settings[name.replace("-", "_")] = text
    return settings


def _run_throughput(arguments: argparse.Namespace) -> int:
    from quire import LLM, SamplingParams

    load = _workload(arguments)
    with LLM(arguments.model, **_settings(arguments)) as llm:
        llm.generate(
            [request.prompt for request in load.requests[-2:]], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True), False
        )
        failed = 0
        for repeat in range(arguments.repeat):
            requests = _shifted(load, repeat + 1, arguments.vocab)
            params = [SamplingParams(temperature=0, max_tokens=request.output_len, ignore_eos=True) for request in requests]
            start = time.perf_counter()
            outputs = llm.generate([request.prompt for request in requests], params)
            wall_s = time.perf_counter() - start
            timings = [RequestTiming(0.0, wall_s, len(output.outputs[0].token_ids), len(output.prompt_token_ids), []) for output in outputs]
            summary = {key: value for key, value in report.summarize(timings, wall_s).items() if not key.endswith("_ms")}
            settings = {"workload": load.name, "repeat": repeat, "model": os.path.basename(arguments.model), **_settings(arguments)}
            report.print_table(f"throughput {settings}", summary)
            document = {"kind": "throughput", "settings": settings, "summary": summary, "environment": report.environment()}
            report.write(arguments.output_json, document)
            failed += summary["failed"]
    return 1 if failed else 0


def _run_latency(arguments: argparse.Namespace) -> int:
    from quire import AsyncLLM, SamplingParams

    load = _workload(arguments)

    async def measure() -> int:
        failed = 0
        async with AsyncLLM(arguments.model, **_settings(arguments)) as llm:
            for repeat in range(arguments.repeat + 1):  # the first one warms up
                timings = []
                begin = time.perf_counter()
                for request in _shifted(load, repeat, arguments.vocab)[: 1 if repeat == 0 else None]:
                    params = SamplingParams(temperature=0, max_tokens=request.output_len, ignore_eos=True)
                    start = time.perf_counter()
                    times: list[float] = []
                    tokens = 0
                    async for output in llm.generate(request.prompt, params, delta=True):
                        times.append(time.perf_counter())
                        tokens += len(output.outputs[0].token_ids)
                        prompt_tokens = len(output.prompt_token_ids)
                    gaps = [after - before for before, after in itertools.pairwise(times)]
                    timings.append(RequestTiming(times[0] - start, times[-1] - start, tokens, prompt_tokens, gaps))
                if repeat:
                    name = os.path.basename(arguments.model)
                    settings = {"workload": load.name, "repeat": repeat - 1, "model": name, **_settings(arguments)}
                    failed += _finish(arguments, "latency", settings, timings, time.perf_counter() - begin)
        return failed

    import uvloop

    return 1 if uvloop.run(measure()) else 0

"""An OpenAI-compatible SSE client that measures: closed loop (a fixed number of requests in flight) and open loop (Poisson arrivals)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec

from ipc.errors import ConfigError
from quire.benchmarks.report import RequestTiming
from quire.benchmarks.workload import BenchRequest


class _Choice(msgspec.Struct):
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


RETRIES = 2
_DECODER = msgspec.json.Decoder(_Chunk)


class LoadClient:
    """Sends completions to one server and times what comes back.

    url: the server's root. model: name in the requests. extra: fields merged into every body.
    """

    def __init__(self, url: str, model: str, extra: dict[str, Any], api_key: str = "") -> None:
        self._url = url.rstrip("/")
        self._model = model
        self._extra = extra
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def __aenter__(self) -> LoadClient:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None, sock_read=300), headers=self._headers
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def first_model(self) -> tuple[str, int]:
        """Name and max_model_len of the first model the server lists. Raises ConfigError if there is no such server."""
        try:
            async with self._session.get(f"{self._url}/v1/models") as response:
                if response.status != 200:
                    raise ConfigError(f"{self._url}/v1/models answers {response.status}: {(await response.text())[:200]}")
                card = (await response.json())["data"][0]
                return card["id"], int(card.get("max_model_len", 0))
        except (aiohttp.ClientError, KeyError, IndexError) as error:
            raise ConfigError(f"no OpenAI-compatible server answers at {self._url}: {error}") from None

    async def one(self, request: BenchRequest) -> RequestTiming:
        """Stream one completion; an error of any kind is in the result and not raised."""
        body = {
            "model": self._model,
            "prompt": request.prompt,
            "max_tokens": request.output_len,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._extra,
        }
        start = time.perf_counter()
        first = last = 0.0
        gaps: list[float] = []
        usage = _Usage()
        try:
            async with await self._post(body) as response:
                if response.status != 200:
                    return RequestTiming(0, 0, 0, 0, [], f"{response.status}: {(await response.text())[:200]}")
                async for line in response.content:
                    if not line.startswith(b"data: {"):
                        continue
                    now = time.perf_counter()
                    chunk = _DECODER.decode(line[6:])
                    if chunk.error:
                        return RequestTiming(0, 0, 0, 0, [], str(chunk.error)[:200])
                    usage = chunk.usage or usage
                    if chunk.choices and (chunk.choices[0].text or chunk.choices[0].finish_reason):
                        if first:
                            gaps.append(now - last)
                        else:
                            first = now
                        last = now
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.MsgspecError) as error:
            return RequestTiming(0, 0, 0, 0, [], f"{type(error).__name__}: {error}")
        if not first:
            return RequestTiming(0, 0, 0, 0, [], "the stream ended without a token")
        return RequestTiming(first - start, last - start, usage.completion_tokens, usage.prompt_tokens, gaps)

    async def _post(self, body: dict[str, Any]) -> aiohttp.ClientResponse:
        """The answer's head. A server may close a connection that it kept alive just when a request comes on it: that is sent again."""
        for _ in range(RETRIES):
            try:
                return await self._session.post(f"{self._url}/v1/completions", json=body)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                pass
        return await self._session.post(f"{self._url}/v1/completions", json=body)

    async def closed_loop(self, requests: Sequence[BenchRequest], concurrency: int) -> tuple[list[RequestTiming], float]:
        """`concurrency` requests in flight until all are done; timings and the wall time in seconds."""
        pending = iter(requests)
        timings: list[RequestTiming] = []

        async def lane() -> None:
            for request in pending:
                timings.append(await self.one(request))

        start = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(min(concurrency, len(requests)))))
        return timings, time.perf_counter() - start

    async def open_loop(self, requests: Sequence[BenchRequest], rate: float, seed: int = 0) -> tuple[list[RequestTiming], float]:
        """Requests arrive as a Poisson process of `rate` per second, however slow the server is."""
        rng = random.Random(seed)
        start = time.perf_counter()
        due = 0.0
        tasks = []
        for request in requests:
            due += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
            tasks.append(asyncio.create_task(self.one(request)))
        timings = list(await asyncio.gather(*tasks))
        return timings, time.perf_counter() - start

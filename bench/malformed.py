"""Hundreds of malformed requests over raw sockets, and how soon a server answers or closes.

    quire serve --header-timeout 2 --body-timeout 2 --keepalive-timeout 2 --max-body-bytes 100000
    python -m bench.malformed http://127.0.0.1:8000

A case is bytes to send, what happens to the connection then, and what may come of it. tests/api/test_malformed.py asserts it; run by
hand it prints the times.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import unquote

import msgspec

from frontend.schemas.batches import BatchRequest
from frontend.schemas.chat import ChatRequest
from frontend.schemas.completions import CompletionRequest
from frontend.schemas.messages import MessagesRequest
from frontend.schemas.ollama import OllamaChatRequest, OllamaGenerateRequest
from frontend.schemas.responses import ResponsesRequest
from frontend.schemas.tokenize import DetokenizeRequest, TokenizeRequest

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
# No answer may show where the server lives or what it is made of.
INSIDE = re.compile(r"Traceback|0x[0-9a-f]{6}|/(?:home|usr|tmp|lib|root|work|opt|run|var)/|\.py\b|msgspec|aiohttp|sqlite|File \"")
SECONDS = 15.0


class After(Enum):
    """What the client does when its bytes are out."""

    WAIT = "wait"  # keep the connection open
    HALF_CLOSE = "half-close"  # say that nothing more will come, and read
    TRICKLE = "trickle"  # the bytes went out one by one with pauses


@dataclass(frozen=True)
class Case:
    """kind: for the report. slow: a timeout has to pass first. answers: how many of any status come before the one that counts."""

    kind: str
    data: bytes
    after: After = After.WAIT
    slow: bool = False
    answers: int = 0


@dataclass(frozen=True)
class Outcome:
    """status: of the last answer, 0 if the connection was closed without one, -1 if neither came."""

    case: Case
    status: int
    seconds: float
    text: str


def post(path: str, body: bytes, headers: bytes = JSON) -> bytes:
    return b"POST %b HTTP/1.1\r\n" % path.encode() + HOST + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


def cases() -> list[Case]:
    """All of them, each different."""
    found = [*_request_lines(), *_headers(), *_framing(), *_kinds(), *_documents(), *_types(), *_values(), *_connections()]
    return list({case.data + case.after.value.encode(): case for case in found}.values())


def _request_lines() -> Iterator[Case]:
    lines = [
        b"", b" ", b"GET", b"GET ", b"GET /", b"GET / ", b"GET / HTTP", b"GET / HTTP/", b"GET / HTTP/1", b"GET / HTTP/1.",
        b"GET / HTTP/x.y",
        b"GET / HTTP/0.0", b"GET / HTTP/3.0", b"GET / HTTP/9.9", b"GET / HTTP/1.11", b"GET / http/1.1", b"GET / FTP/1.1",
        b"GET / HTTP/1.1 x",
        b"GET  / HTTP/1.1", b"GET /  HTTP/1.1", b"GET\t/\tHTTP/1.1", b" GET / HTTP/1.1", b"get / HTTP/1.1", b"G\xc3\x89T / HTTP/1.1",
        b"G\x00T / HTTP/1.1", b"GET / \x00HTTP/1.1", b"GET /\x00 HTTP/1.1", b"GET /\x01 HTTP/1.1", b"GET /\x7f HTTP/1.1",
        b"GET nothing HTTP/1.1",
        b"GET ?x HTTP/1.1", b"GET \\ HTTP/1.1", b"GET //[ HTTP/1.1", b"GET http://[::1 HTTP/1.1", b"GET http:// HTTP/1.1",
        b"GET : HTTP/1.1",
        b"CONNECT / HTTP/1.1", b"CONNECT localhost:80 HTTP/1.1", b"TRACE / HTTP/1.1", b"BREW /health HTTP/1.1", b"PRI * HTTP/2.0",
        b"(){ :; }; HTTP/1.1", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x80\x2e\x01\x00\x02", b"SSH-2.0-x", b"*1", b"EHLO x",
        b"DELETE /health HTTP/1.1", b"PUT /v1/models HTTP/1.1", b"PATCH /v1/files HTTP/1.1", b"GET /v1/completions HTTP/1.1",
        b"GET /%s HTTP/1.1" % (b"a" * 9_000), b"GET /%s HTTP/1.1" % (b"/.." * 200), b"GET /..%2f..%2fetc/passwd HTTP/1.1",
        b"GET /v1/models/%ff%fe HTTP/1.1", b"GET /%zz HTTP/1.1", b"GET /v1/files/..%2f..%2fstate.sqlite HTTP/1.1",
        b"GET /v1/files/../../x/content HTTP/1.1", b"GET /v1/batches/' HTTP/1.1", b"%s / HTTP/1.1" % (b"M" * 9_000),
    ]  # fmt: skip
    for line in lines:
        yield Case("request line", line + b"\r\n" + HOST + b"\r\n", After.HALF_CLOSE)
    yield Case("request line", b"GET / HTTP/1.1\n\n", After.HALF_CLOSE)
    yield Case("request line", b"\r" * 100, After.HALF_CLOSE)


def _headers() -> Iterator[Case]:
    for byte in [*range(0x21), *b'"(),/;<=>?@[\\]{}', 0x7F, 0x80, 0xFF]:
        if byte not in (0x0A, 0x0D):
            yield Case("header name", b"GET /nothing HTTP/1.1\r\n" + HOST + b"X%cY: z\r\n\r\n" % byte)
    for byte in [*range(0x09), *range(0x0E, 0x20), 0x7F]:
        yield Case("header value", b"GET /nothing HTTP/1.1\r\n" + HOST + b"X: a%cb\r\n\r\n" % byte)
    for lines in (
        b"X\r\n", b": x\r\n", b"X : y\r\n", b" X: y\r\n", b"X: y\r\n folded\r\n", b"X: y\r\n\tfolded\r\n", b"X: a\rb\r\n", b"X: a\nb\r\n",
        b"X: y\nContent-Length: 5\r\n", b"X: " + b"y" * 40_000 + b"\r\n", b"X" * 40_000 + b": y\r\n",
        b"".join(b"X-%d: y\r\n" % place for place in range(500)), b"Host: other\r\n", b"Connection: close\r\n" * 150,
        b"Content-Length: 5\r\nContent-Length: 6\r\n", b"Upgrade: h2c\r\nHTTP2-Settings: \xff\r\n",
    ):  # fmt: skip
        yield Case("header", b"GET /nothing HTTP/1.1\r\n" + HOST + lines + b"\r\n")
    for host in (
        b"evil.example",
        b"localhost.evil.example",
        b"127.0.0.1.evil.example",
        b"[::1",
        b"localhost:x",
        b"a b",
        b"0.0.0.0",
        b"@",
        b"localhost,evil",
    ):
        yield Case("host", b"GET /health HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")


def _framing() -> Iterator[Case]:
    """Two readings of where a body ends are how requests are smuggled past a proxy. The body is a good one: only the frame is wrong."""
    body, chunked = b'{"prompt": "x"}', b"f\r\n" + b'{"prompt": "x"}\r\n' + b"0\r\n\r\n"

    def framed(headers: bytes, rest: bytes) -> Case:
        return Case("framing", b"POST /tokenize HTTP/1.1\r\n" + HOST + JSON + headers + b"\r\n" + rest, After.HALF_CLOSE)

    for length in (
        b"-1",
        b"+15",
        b"0x0f",
        b"1e1",
        b"15.0",
        b"15 15",
        b"15,15",
        b"15, 16",
        b"",
        b" ",
        b"x",
        b"9" * 30,
        b"\xb2",
        b"1_4",
        b"15;",
        b"015x",
    ):
        yield framed(b"Content-Length: " + length + b"\r\n", body)
    yield framed(b"Content-Length: 15\r\nContent-Length: 16\r\n", body)
    yield framed(b"Content-Length: 15\r\nContent-Length: 15\r\n", body)
    yield framed(b"Content-Length : 15\r\n", body)
    yield framed(b"Content-Length: 15\r\nTransfer-Encoding: chunked\r\n", chunked)
    yield framed(b"Transfer-Encoding: chunked\r\nContent-Length: 15\r\n", chunked)
    for coding in (
        b"xchunked", b"chunkedx", b"identity", b"gzip", b"gzip, chunked", b"chunked, gzip", b"chunked, chunked", b"chunked;q=1",
        b"\x0bchunked",
        b'"chunked"', b"chunked,", b", chunked", b"", b"chunked\x00", b"cow", b"deflate", b"chun\tked", b"trailers",
    ):  # fmt: skip
        yield framed(b"Transfer-Encoding: " + coding + b"\r\n", chunked)
    yield framed(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", chunked)
    yield framed(b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", chunked)
    yield framed(b"Transfer_Encoding: chunked\r\n", chunked)
    yield framed(b"Transfer-Encoding : chunked\r\n", chunked)
    end = b"\r\n0\r\n\r\n"
    for rest in (
        b"zz\r\n", b"-1\r\n", b"0xf\r\n" + body + end, b"f\n" + body + b"\n0\n\n", b"f\r\n" + body + b"xx" + end,
        b"f;\x00\r\n" + body + end,
        b"ffffffffffffffffff\r\n" + body + end, b"f \r\n" + body + end, b"\r\n", b"f\r\n" + body[:5], b"f\r\n" + body + b"XX0\r\n\r\n",
        b"1" * 5_000 + b"\r\n", b"f;" + b"e" * 40_000 + b"\r\n" + body + end, b"f\r\n" + body + b"\r\n0\r\nX\r\n\r\n",
        b"+f\r\n" + body + end,
        b"f\r\r\n" + body + end, b"e\r\n" + body + end, b"10\r\n" + body + end, b"f\r" + body + end, b" f\r\n" + body + end,
        b"_f\r\n" + body + end,
    ):  # fmt: skip
        yield framed(b"Transfer-Encoding: chunked\r\n", rest)
    # A body that the server must not take for the next request.
    smuggled = b"GET /admin/state HTTP/1.1\r\n" + HOST + b"\r\n"
    yield framed(b"Content-Length: %d\r\n" % len(smuggled), smuggled)
    yield framed(b"Transfer-Encoding: chunked\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(smuggled), smuggled))


def _kinds() -> Iterator[Case]:
    good = b'{"prompt": "x", "max_tokens": 1}'
    for kind in (
        b"text/plain",
        b"application/xml",
        b"multipart/form-data",
        b"application/x-www-form-urlencoded",
        b"json",
        b"/",
        b"*/*",
        b"text/json",
    ):
        yield Case("content type", post(COMPLETIONS, good, b"Content-Type: " + kind + b"\r\n"))
    for coding in (b"gzip", b"deflate", b"br", b"zstd", b"compress", b"identity, gzip", b"x", b"gzip, gzip, gzip"):
        yield Case("content encoding", post(COMPLETIONS, good, JSON + b"Content-Encoding: " + coding + b"\r\n"))
    for expect in (b"200-ok", b"x", b"100-continue, x"):
        yield Case("expect", post(COMPLETIONS, good, JSON + b"Expect: " + expect + b"\r\n"))
    for size in (100_001, 1_000_000, 10**9, 10**18):
        yield Case(
            "too large", b"POST %b HTTP/1.1\r\n" % COMPLETIONS.encode() + HOST + JSON + b"Content-Length: %d\r\n\r\n" % size + b"x" * 1_000
        )
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    yield Case("too large", b"POST %b HTTP/1.1\r\n" % CHAT.encode() + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 8)
    multipart = b"Content-Type: multipart/form-data; boundary="
    for boundary, form in (
        (b"", b"x"), (b"b", b""), (b"b", b"--b"), (b"b", b"--b\r\n"), (b"b", b"--b--"),
        (b"b", b"--b\r\n-1--b--"), (b"b", b"--b\r\n--b\r\n--b--"), (b"b" * 200, b"--b--"), (b'"', b"--b--"),
        (b"b", b"--b\r\nX\r\n\r\nx\r\n--b--"), (b"b", b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx'),
        (b"b", b'--b\r\nContent-Disposition: form-data; name="file"\r\nContent-Transfer-Encoding: base64\r\n\r\n!\r\n--b--'),
        (b"b", b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n\xff\r\n--b--'),
        (b"b", b"--b\r\n" + b"X-Y: z\r\n" * 5_000 + b"\r\nx\r\n--b--"),
    ):  # fmt: skip
        yield Case("form", post("/v1/files", form, multipart + boundary + b"\r\n"), After.HALF_CLOSE)


def _documents() -> Iterator[Case]:
    whole = b'{"model": null, "prompt": "a\\u00e9\\n", "max_tokens": 1, "stop": ["x", "y"], "temperature": -1.5e-1}'
    for end in range(len(whole) - 1):
        yield Case("cut JSON", post(COMPLETIONS, whole[:end]))
    for inner in (
        b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82", b"\x80", b"\xf0\x9f\x98", b"\xc3(", b"\xfe\xff",
        b"\x00", b"\x1f",
        b"\n", b"\\x", b"\\u12", b"\\ud800\\u0041x\\", b"\\u{41}", b'"', b"\\",
    ):  # fmt: skip
        yield Case("text in JSON", post(COMPLETIONS, b'{"prompt": "a' + inner + b'", "max_tokens": 1}'))
    for value in (
        b"NaN", b"Infinity", b"-Infinity", b"nan", b"1e999", b"-1e999", b"01", b"+1", b".5", b"1.", b"0x1", b"1e", b"--1", b"1_0",
        b"undefined",
        b"True", b"'x'", b"1e400", b"9" * 400, b"-" + b"9" * 400, b"1" * 5_000, b"{", b"[", b"{]", b"[}", b"(1)", b"1 2", b"1,", b"/* */ 1",
    ):  # fmt: skip
        yield Case("value in JSON", post(COMPLETIONS, b'{"prompt": "x", "max_tokens": 1, "temperature": ' + value + b"}"))
    for document in (
        b"", b" ", b"null", b"1", b'"x"', b"[]", b"[{}]", b"true", b"{}", b"{} {}", b"{}x", b"\xef\xbb\xbf{}", b"{,}",
        b'{"prompt"}', b"{1: 2}",
        b'{"prompt": "x",}', '{"prompt": "x"}'.encode("utf-16"), '{"prompt": "x"}'.encode("utf-32"), b"prompt=x", b"<xml/>", b"\x00" * 100,
        b"PK\x03\x04", b"\x80\x04\x95.", b"\x1f\x8b\x08\x00",
    ):  # fmt: skip
        for path in (COMPLETIONS, CHAT, "/v1/messages"):
            yield Case("document", post(path, document))
    for depth in (1_500, 20_000, 45_000):
        yield Case("depth", post(COMPLETIONS, b"[" * depth + b"]" * depth))
        yield Case("depth", post(CHAT, b'{"a":' * (depth // 2) + b"1" + b"}" * (depth // 2)))
        yield Case("depth", post(CHAT, b'{"messages": [{"role": "user", "content": "x"}], "x": ' + b"[" * depth))


_ODD: list[Any] = [True, 5, -7, 1.5, "x", [], {}, [[1]], [None], {"a": 1}, [1, "x"]]
_BODIES: dict[str, tuple[type[msgspec.Struct], dict[str, Any]]] = {
    CHAT: (ChatRequest, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
    COMPLETIONS: (CompletionRequest, {"prompt": "x", "max_tokens": 1}),
    "/v1/responses": (ResponsesRequest, {"input": "x", "max_output_tokens": 1, "store": False}),
    "/v1/messages": (MessagesRequest, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
    "/api/chat": (OllamaChatRequest, {"model": "", "messages": [{"role": "user", "content": "x"}]}),
    "/api/generate": (OllamaGenerateRequest, {"model": "", "prompt": "x"}),
    "/tokenize": (TokenizeRequest, {"prompt": "x"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [1]}),
    "/v1/batches": (BatchRequest, {"input_file_id": "file-x", "endpoint": COMPLETIONS, "completion_window": "24h"}),
}


def _types() -> Iterator[Case]:
    """Each field of each request with what its type does not take."""
    for path, (shape, body) in _BODIES.items():
        for field in msgspec.structs.fields(shape):
            for odd in _ODD:
                changed = body | {field.encode_name: odd}
                try:
                    msgspec.convert(changed, shape)
                except msgspec.ValidationError:
                    yield Case("type", post(path, json.dumps(changed).encode()))
        for field in msgspec.structs.fields(shape):
            if field.required:
                yield Case("missing", post(path, json.dumps({name: body[name] for name in body if name != field.encode_name}).encode()))


def _values() -> Iterator[Case]:
    """The right type and no meaning."""
    for value in (2**31, 2**32 + 5, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1, 10**30, -1, 1.5, 1e300):
        for name in ("max_tokens", "n", "logprobs", "min_tokens", "prompt_logprobs"):
            if (name, value) not in (("max_tokens", 2**31), ("max_tokens", 2**32 + 5), ("max_tokens", 2**63 - 1)):
                yield Case("number", post(COMPLETIONS, json.dumps({"prompt": "x", "max_tokens": 1, name: value}).encode()))
        yield Case("number", post(COMPLETIONS, json.dumps({"prompt": [value], "max_tokens": 1}).encode()))
        yield Case("number", post("/detokenize", json.dumps({"tokens": [value]}).encode()))
        if abs(value) > 2 and value != 1.5:
            for name in ("temperature", "top_p", "presence_penalty", "min_p"):
                yield Case("number", post(COMPLETIONS, json.dumps({"prompt": "x", "max_tokens": 1, name: value}).encode()))
        for name in ("stop_token_ids", "allowed_token_ids"):
            yield Case("number", post(COMPLETIONS, json.dumps({"prompt": "x", "max_tokens": 1, name: [value]}).encode()))
        yield Case("number", post(COMPLETIONS, json.dumps({"prompt": "x", "max_tokens": 1, "logit_bias": {str(value): 1}}).encode()))


def _connections() -> Iterator[Case]:
    """Pieces, pauses and halves. Those that stop in the middle are ended by a timeout."""
    whole = post(COMPLETIONS, b'{"prompt": 5}')
    head, body = whole[: whole.index(b"\r\n\r\n") + 4], whole[whole.index(b"\r\n\r\n") + 4 :]
    for end in (0, 1, 3, 10, 30, 50, len(head) - 3, len(head) - 1):
        yield Case("stops in the head", head[:end], slow=True)
        yield Case("leaves in the head", head[:end], After.HALF_CLOSE)
    for end in (0, 1, 5, len(body) - 1):
        yield Case("stops in the body", head + body[:end], slow=True)
        yield Case("leaves in the body", head + body[:end], After.HALF_CLOSE)
    yield Case(
        "stops in a chunk", b"POST /v1/completions HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", slow=True
    )
    yield Case("trickles", b"GET /nothing HTTP/1.1\r\n" + b"X: y\r\n" * 20, After.TRICKLE, slow=True)
    yield Case("trickles", head + b" " * 40, After.TRICKLE, slow=True)
    fine = b"GET /version HTTP/1.1\r\n" + HOST + b"\r\n"
    yield Case("pipelined", fine * 3 + b"nonsense\r\n\r\n", answers=3)
    yield Case("pipelined", fine + whole, answers=1)
    yield Case("pipelined", fine * 20 + b"GET / HTTP/9.9\r\n\r\n", answers=20)
    yield Case("pipelined", fine + b"GET /ver", slow=True, answers=1)
    yield Case("idle after an answer", fine, slow=True, answers=1)


def run(host: str, port: int, case: Case) -> Outcome:
    """Send one case and see what comes."""
    began = time.monotonic()
    data = b""
    with socket.create_connection((host, port), timeout=SECONDS) as connection:
        try:
            if case.after is After.TRICKLE:
                for place in range(len(case.data)):
                    connection.sendall(case.data[place : place + 1])
                    time.sleep(0.1)
            else:
                connection.sendall(case.data)
            if case.after is After.HALF_CLOSE:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has been refused already; the answer may still be there to read
        closed = False
        try:
            while not _complete(data, case.answers + (0 if case.slow and case.answers else 1)) or (case.slow and case.answers):
                part = connection.recv(65_536)
                if not part:
                    closed = True
                    break
                data += part
        except ConnectionError:
            closed = True
        except TimeoutError:
            pass
    # aiohttp answers in the version of the request, which is 0.9 when it names none.
    statuses = [int(status) for status in re.findall(rb"HTTP/(?:1\.[01]|0\.9) (\d{3}) ", data)]
    wanted = [status for status in statuses if status != 100][case.answers :]
    status = wanted[-1] if wanted else 0 if closed else -1
    return Outcome(case, status, time.monotonic() - began, data.decode("utf-8", "replace"))


def _complete(data: bytes, count: int) -> bool:
    """Whether `count` whole answers are there. Ours have a length."""
    while count:
        head, found, rest = data.partition(b"\r\n\r\n")
        if not found:
            return False
        if head.startswith(b"HTTP/1.1 100"):
            data = rest
            continue
        length = re.search(rb"(?i)content-length: (\d+)", head)
        size = int(length[1]) if length else 0
        if len(rest) < size:
            return False
        data, count = rest[size:], count - 1
    return True


def wrong(outcome: Outcome) -> str:
    """What is wrong with it; '' if nothing is."""
    if outcome.status == -1:
        return "neither answered nor closed"
    if outcome.status != 0 and not 400 <= outcome.status < 500:
        return f"status {outcome.status}"
    words = outcome.case.data.split(b" ", 2)
    path = unquote(words[1].decode("latin-1")) if len(words) == 3 else ""  # an answer may repeat what its client said
    if INSIDE.search(outcome.text.replace(path, "") if len(path) > 1 else outcome.text):
        return "the answer shows the inside"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("url")
    host, _, port = parser.parse_args().url.removeprefix("http://").rstrip("/").rpartition(":")
    everything = cases()
    outcomes = [run(host, int(port), case) for case in everything if not case.slow]
    with ThreadPoolExecutor(64) as pool:
        slow = list(pool.map(lambda case: run(host, int(port), case), [case for case in everything if case.slow]))
    times = sorted(outcome.seconds for outcome in outcomes)
    faults = [(outcome.case.kind, outcome.case.data[:80], wrong(outcome)) for outcome in outcomes + slow if wrong(outcome)]
    report = {
        "command": "python -m bench.malformed URL, against the demo model",
        "environment": {"cores": len(os.sched_getaffinity(0)), "machine": platform.machine(), "date": time.strftime("%Y-%m-%d")},
        "cases": len(everything),
        "answered": sum(outcome.status > 0 for outcome in outcomes),
        "closed": sum(outcome.status == 0 for outcome in outcomes),
        "milliseconds": {
            "p50": round(1e3 * statistics.median(times), 1),
            "p99": round(1e3 * times[len(times) * 99 // 100], 1),
            "max": round(1e3 * times[-1], 1),
        },
        "ended by a timeout": len(slow),
        "seconds until then": round(max(outcome.seconds for outcome in slow), 1),
        "kinds": Counter(case.kind for case in everything),
        "wrong": [str(fault) for fault in faults],
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

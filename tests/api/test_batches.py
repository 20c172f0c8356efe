"""Files and batches through OpenAI's own client, over several frontends and several lives of them."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import openai
import pytest

from frontend.state_dir import StateDir
from ipc.arena import Stat
from ipc.config import Config, SchedulerConfig, ServerConfig
from ipc.errors import ConfigError
from ipc.messages import Drain, Drained
from tests.api.server import ApiServer, api_server, http, until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def config(directory: Path, **more: Any) -> Config:
    return Config(server=ServerConfig(state_dir=str(directory), max_file_bytes=20_000, **more))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Two frontends; its worker repeats the prompt."""
    with api_server(config(tmp_path_factory.mktemp("state"), max_stored_file_bytes=40_000, max_body_bytes=10_000), frontends=2) as running:
        yield running


@pytest.fixture(scope="module")
def client(kept: ApiServer) -> Iterator[openai.OpenAI]:
    # A connection per request, so that both frontends are asked.
    limits = httpx2.Limits(max_keepalive_connections=0)
    with openai.OpenAI(
        base_url=f"{kept.url}/v1", api_key="none", max_retries=0, http_client=openai.DefaultHttpxClient(limits=limits)
    ) as made:
        yield made


def line(identity: str, url: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
    given = {"model": "demo", "max_tokens": 30, **({"prompt": "one two"} if url == COMPLETIONS else {}), **body}
    return {"custom_id": identity, "method": "POST", "url": url, "body": given}


def upload(client: openai.OpenAI, lines: list[Any], **more: Any) -> Any:
    text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    return client.files.create(file=("in.jsonl", text.encode()), purpose="batch", **more)


def begin(client: openai.OpenAI, lines: list[Any], endpoint: Any = COMPLETIONS, **more: Any) -> Any:
    return client.batches.create(input_file_id=upload(client, lines).id, endpoint=endpoint, completion_window="24h", **more)


def ended(client: openai.OpenAI, identity: str) -> Any:
    until(lambda: client.batches.retrieve(identity).status in ("completed", "failed", "cancelled", "expired"))
    return client.batches.retrieve(identity)


def records(client: openai.OpenAI, identity: str | None) -> list[dict[str, Any]]:
    assert identity is not None
    return [json.loads(each) for each in client.files.content(identity).text.splitlines()]


def test_files(client: openai.OpenAI) -> None:
    made = client.files.create(
        file=("a/b\\notes.txt", b"some \x00 bytes"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (made.filename, made.bytes, made.purpose, made.status) == ("notes.txt", 12, "user_data", "processed")
    assert made.expires_at == made.created_at + 3600
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == b"some \x00 bytes"
    others = [upload(client, [line(str(number))]) for number in range(3)]
    assert [each.id for each in client.files.list(purpose="batch", limit=2)][:3] == [each.id for each in reversed(others)]
    assert [each.id for each in client.files.list(order="asc", after=others[0].id)][:2] == [others[1].id, others[2].id]
    for each in [made, *others]:
        assert client.files.delete(each.id).deleted is True
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            call(made.id)
        assert caught.value.code == "file_not_found"


def test_uploads_that_are_refused(kept: ApiServer, client: openai.OpenAI) -> None:
    before = len(list(client.files.list()))
    for purpose, param in (("", "purpose"), ("batch_output", "purpose")):
        with pytest.raises(openai.BadRequestError) as caught:
            client.files.create(file=b"x", purpose=purpose)  # type: ignore[arg-type]
        assert caught.value.param == param
    with pytest.raises(openai.BadRequestError) as soon:
        client.files.create(file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": 1})
    assert soon.value.param == "expires_after"
    for size in (20_001, 400_000):
        with pytest.raises(openai.APIStatusError) as large:
            client.files.create(file=b"x" * size, purpose="batch")
        assert (large.value.status_code, large.value.code) == (413, "body_too_large")
    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    field = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\nbatch\r\n'
    file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nx\r\n'
    nested = b'--b\r\nContent-Disposition: form-data; name="file"\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c--\r\n--b--\r\n'
    for body, headers, status in (
        (b"{}", {}, 415),
        (b"x", {"Content-Type": "multipart/form-data"}, 400),
        (b"no form", multipart, 400),
        (b"--b--\r\n", multipart, 400),
        (b"--b\r\n-1--b--\r\n", multipart, 400),
        (b"\r\n--b\r\n--b\r\n--b--", multipart, 400),
        (b"--b\r\n\r\nx\r\n--b--\r\n", multipart, 400),
        (field % b"purpose" + b"--b--\r\n", multipart, 400),
        (file + b"--b--\r\n", multipart, 400),
        (file + file + b"--b--\r\n", multipart, 400),
        (file + field % b"purpose" + field % b"colour" + b"--b--\r\n", multipart, 400),
        (field % b"purpose" + nested, multipart, 400),
        (b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + b"x" * 5000 + b"\r\n--b--\r\n", multipart, 400),
    ):
        got, _, raw = kept.request("POST", "/v1/files", body, headers)
        assert got == status, (body[:80], raw)
        assert "message" in json.loads(raw)["error"] and b"aiohttp" not in raw
    for path in ("?limit=0", "?limit=x", "?order=up", "?purpose=none"):
        assert kept.get(f"/v1/files{path}")[0] == 400
    assert kept.get("/v1/files?after=file-none")[0] == 404
    assert len(list(client.files.list())) == before


def test_a_full_disk_space(client: openai.OpenAI) -> None:
    made = [client.files.create(file=b"x" * 15_000, purpose="user_data") for _ in range(2)]
    with pytest.raises(openai.APIStatusError) as caught:
        client.files.create(file=b"x" * 15_000, purpose="user_data")
    assert (caught.value.status_code, caught.value.code) == (413, "storage_full")
    for each in made:
        client.files.delete(each.id)
    client.files.delete(client.files.create(file=b"x" * 15_000, purpose="user_data").id)


def test_a_batch(client: openai.OpenAI) -> None:
    """Good lines and bad ones, in the order of the input file."""
    lines = [line(f"request-{number}", prompt=f"word {number}") for number in range(20)]
    lines[3]["body"]["temperature"] = 9
    lines[5]["body"]["model"] = "other"
    lines[7]["body"]["stream"] = True
    made = begin(client, [*lines, ""], metadata={"a": "b"})
    assert made.status in ("validating", "in_progress") and made.object == "batch"
    batch = ended(client, made.id)
    assert batch.status == "completed" and batch.metadata == {"a": "b"} and batch.errors is None
    assert batch.request_counts is not None and batch.request_counts.model_dump() == {"total": 20, "completed": 17, "failed": 3}
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at < batch.expires_at
    good, bad = records(client, batch.output_file_id), records(client, batch.error_file_id)
    assert [each["custom_id"] for each in good] == [f"request-{number}" for number in range(20) if number not in (3, 5, 7)]
    for each in good:
        response = each["response"]
        assert response["status_code"] == 200 and each["error"] is None and response["request_id"]
        assert response["body"]["choices"][0]["text"] == f"word {each['custom_id'].removeprefix('request-')}"
    assert [(each["custom_id"], each["response"]["status_code"]) for each in bad] == [
        ("request-3", 400), ("request-5", 404), ("request-7", 400),
    ]  # fmt: skip
    assert bad[0]["response"]["body"]["error"]["param"] == "temperature"
    usage = [each["response"]["body"]["usage"] for each in good]
    assert batch.usage is not None and batch.usage.input_tokens == sum(each["prompt_tokens"] for each in usage)
    assert batch.usage.output_tokens == sum(each["completion_tokens"] for each in usage)
    assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"
    assert client.batches.list(limit=1).data == [batch]
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_other_endpoints(client: openai.OpenAI) -> None:
    lines = [line("a", CHAT, messages=[{"role": "user", "content": "hi"}])]
    [record] = records(client, ended(client, begin(client, lines, CHAT).id).output_file_id)
    assert record["response"]["body"]["choices"][0]["message"]["content"] == "user\nhi"
    responses = "/v1/responses"
    lines = [{**line("a", responses), "body": {"input": "hi", "store": False}}]
    [record] = records(client, ended(client, begin(client, lines, responses).id).output_file_id)
    assert record["response"]["body"]["object"] == "response"
    embeddings = "/v1/embeddings"
    lines = [{**line(name, embeddings), "body": {"input": ["hi", "ho"], "dimensions": 8}} for name in "ab"]
    lines[1]["body"]["encoding_format"] = "bytes"
    batch = ended(client, begin(client, lines, embeddings).id)
    [refused] = records(client, batch.error_file_id)
    assert refused["response"]["body"]["error"]["param"] == "encoding_format"
    [record] = records(client, batch.output_file_id)
    assert [len(each["embedding"]) for each in record["response"]["body"]["data"]] == [8, 8]


@pytest.mark.parametrize(
    "lines, code, place",
    [
        (["{", line("a")], "invalid_json_line", 1),
        ([line("a"), "[]"], "invalid_json_line", 2),
        ([line("a"), line("b"), line("a")], "duplicate_custom_id", 3),
        ([line("a", CHAT)], "mismatched_endpoint", 1),
        ([{**line("a"), "method": "GET"}], "invalid_json_line", 1),
        ([line("")], "invalid_custom_id", 1),
        ([line("a"), line("b", prompt="x" * 10_000)], "line_too_long", 2),
        (["\n"], "empty_file", None),
    ],
)
def test_inputs_that_fail(client: openai.OpenAI, lines: list[Any], code: str, place: int | None) -> None:
    batch = ended(client, begin(client, lines).id)
    assert batch.status == "failed" and batch.output_file_id is None and batch.failed_at is not None
    assert batch.errors is not None and [(each.code, each.line) for each in batch.errors.data or []] == [(code, place)]


def test_batches_that_are_refused(kept: ApiServer, client: openai.OpenAI) -> None:
    good = upload(client, [line("a")]).id
    other = client.files.create(file=b"x", purpose="user_data").id
    body = {"input_file_id": good, "endpoint": COMPLETIONS, "completion_window": "24h"}
    for change, param in (
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"input_file_id": other}, "input_file_id"),
        ({"input_file_id": 5}, "input_file_id"),
        ({"endpoint": "/v1/files"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"k": "v" * 600}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "output_expires_after"),
    ):
        status, answer = kept.post("/v1/batches", {**body, **change})
        assert (status, answer["error"]["param"]) == (400, param)
    for path in ("/v1/batches/batch_none", "/v1/batches?after=batch_none"):
        assert kept.get(path)[0] == 404
    assert kept.get("/v1/batches?limit=101")[0] == 400
    assert kept.post("/v1/batches/batch_none/cancel", {})[0] == 404


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A step takes 5 ms, and four rows run at a time."""
    directory = tmp_path_factory.mktemp("slow")
    made = msgspec.structs.replace(config(directory, batch_concurrency=4), scheduler=SchedulerConfig(max_num_seqs=4))
    with api_server(made, num_blocks=1000, delay=0.005) as running:
        yield running


def database(server: ApiServer) -> sqlite3.Connection:
    return sqlite3.connect(Path(server.specs[0].config.server.state_dir) / "demo" / "state.sqlite")


LONG = {"max_tokens": 800, "ignore_eos": True}


def test_cancelling(slow: ApiServer) -> None:
    with openai.OpenAI(base_url=f"{slow.url}/v1", api_key="none", max_retries=0) as client:
        lines = [line(f"{number}", **({} if number < 4 else LONG)) for number in range(50)]
        batch = begin(client, lines)
        until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 4)
        with pytest.raises(openai.ConflictError):
            client.files.delete(batch.input_file_id)
        assert client.batches.cancel(batch.id).status == "cancelling"
        batch = ended(client, batch.id)
        assert batch.status == "cancelled" and batch.cancelling_at <= batch.cancelled_at
        assert {each["custom_id"] for each in records(client, batch.output_file_id)} >= {"0", "1", "2", "3"}
        assert batch.request_counts.completed < 50
        slow.at_rest()


def test_clients_come_first(slow: ApiServer) -> None:
    """With the running batch full of a batch's lines, none of which ends, one makes room for the client."""
    with openai.OpenAI(base_url=f"{slow.url}/v1", api_key="none", max_retries=0) as client:
        two = [begin(client, [line(f"{number}", **LONG) for number in range(30)]) for _ in range(2)]
        until(lambda: slow.stat(Stat.NUM_RUNNING) == 4)
        answer = client.completions.create(model="demo", prompt="one", max_tokens=5)
        assert answer.choices[0].text
        done = [client.batches.retrieve(batch.id).request_counts.completed for batch in two]
        assert sum(done) == 0, "it waited behind the batches"
        for batch in two:
            client.batches.cancel(batch.id)
        for batch in two:
            ended(client, batch.id)


@pytest.mark.parametrize(
    "url, body, count",
    [
        (COMPLETIONS, {"prompt": [f"word {number}" for number in range(20)], "n": 3, "max_tokens": 3}, 60),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 2, "best_of": 6, "max_tokens": 3}, 4),
        ("/v1/embeddings", {"input": [f"word {number}" for number in range(60)]}, 60),
    ],
)
def test_a_line_that_asks_for_much_leaves_the_queue_to_clients(tmp_path: Path, url: str, body: dict[str, Any], count: int) -> None:
    """Its completions and vectors come bit by bit, in order, although the queue could never hold them all."""
    scheduler = SchedulerConfig(max_num_seqs=2, max_queued_requests=4)
    made = msgspec.structs.replace(config(tmp_path, batch_concurrency=3), scheduler=scheduler)
    with api_server(made, delay=0.005) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        batch = begin(client, [line("all", url, **body)], url)
        most = 0
        while (batch := client.batches.retrieve(batch.id)).status != "completed":
            most = max(most, server.stat(Stat.NUM_RUNNING) + server.stat(Stat.NUM_WAITING))
            assert client.completions.create(model="demo", prompt="one", max_tokens=1).choices
        assert most <= 4, "places for three, and the client's own"
        [record] = records(client, batch.output_file_id)
        answer = record["response"]["body"]
        parts = answer["choices" if url == COMPLETIONS else "data"]
        assert [part["index"] for part in parts] == list(range(count))
        if url != COMPLETIONS:
            return
        prompts = body["prompt"]
        for number, part in enumerate(parts):
            assert prompts[number // body["n"]].startswith(part["text"]), "an answer of another prompt"


def test_an_expired_batch(slow: ApiServer) -> None:
    with openai.OpenAI(base_url=f"{slow.url}/v1", api_key="none") as client:
        batch = begin(client, [line("first"), *(line(f"{number}", **LONG) for number in range(8))])
        until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 1)
        with database(slow) as opened:
            opened.execute("UPDATE batches SET expires_at = created_at WHERE id = ?", (batch.id,))
        batch = ended(client, batch.id)
        assert batch.status == "expired" and batch.request_counts.completed + batch.request_counts.failed == 9
        late = [each for each in records(client, batch.error_file_id) if each["error"]["code"] == "batch_expired"]
        assert late and all(each["response"] is None for each in late)
        assert records(client, batch.output_file_id)[0]["custom_id"] == "first"


@pytest.mark.parametrize("frontends", [1, 2])
def test_a_frontend_that_is_killed(tmp_path: Path, frontends: int) -> None:
    """The batch goes on: in the next life of the process, or in the other frontend. No line that was done is run twice."""
    made = msgspec.structs.replace(config(tmp_path, batch_concurrency=2), scheduler=SchedulerConfig(max_num_seqs=2))
    with api_server(made, frontends=frontends, delay=0.005) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        lines = [line(f"{number}", prompt=f"word {number}", return_token_ids=True) for number in range(40)]
        batch = begin(client, lines)
        until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 5)
        with database(server) as opened:
            done = dict(opened.execute("SELECT line, record FROM batch_lines"))
        for process in server.processes[:1] if frontends == 2 else server.processes:
            process.kill()
            process.wait()
        if frontends == 1:
            server.start_frontend()
            server.wait_ready()
        batch = ended(client, batch.id)
        assert batch.status == "completed" and batch.request_counts.completed == 40
        found = client.files.content(batch.output_file_id).read().splitlines()
        assert len(found) == 40
        for number, record in done.items():
            assert found[number - 1] == record, "a line that was done has been run again"
        assert [json.loads(each)["custom_id"] for each in found] == [f"{number}" for number in range(40)]


def test_a_shutdown_waits_for_lines_and_starts_none(slow: ApiServer) -> None:
    """The last of those with this server."""
    with openai.OpenAI(base_url=f"{slow.url}/v1", api_key="none", max_retries=0) as client:
        batch = begin(client, [line(f"{number}", **({} if number < 4 else {**LONG, "max_tokens": 300})) for number in range(100)])
        until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 3)
        slow.tell(Drain(time.monotonic_ns() + 100 * 10**9))
        slow.engine.supervisor.wait_for(Drained, slow.specs[0].identity)
        with database(slow) as opened:
            [(status, completed)] = opened.execute("SELECT status, completed FROM batches WHERE id = ?", (batch.id,))
        assert status == "in_progress" and 3 <= completed < 100
        slow.at_rest()


def test_off_and_unusable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api_server(Config(server=ServerConfig(state_dir="none"))) as server:
        status, answer = server.get("/v1/files")
        assert (status, answer["error"]["code"]) == (400, "not_supported") and "off" in answer["error"]["message"]
        assert server.request("GET", "/v1/batches")[0] == 400
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--state-dir"):
        StateDir(str(tmp_path / "file"), "demo")
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    assert StateDir("", "demo").why_not
    monkeypatch.setenv("HOME", "/h")
    assert StateDir("", "org/name").path == "/h/.local/state/quire/org-name"
    monkeypatch.setenv("XDG_STATE_HOME", "/x")
    assert StateDir("", "demo").path == "/x/quire/demo"
    monkeypatch.setenv("STATE_DIRECTORY", "/s:/t")
    assert StateDir("", "..").path == "/s/model"


def test_expect_is_answered_before_an_upload(kept: ApiServer) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n' + (
        b'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\n{}\r\n--b--\r\n'
    )
    raw = http("POST", "/v1/files", body, {"Content-Type": "multipart/form-data; boundary=b", "Expect": "100-continue"})
    head = raw[: -len(body)]
    with kept.connect() as connection:
        connection.sendall(head)
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")

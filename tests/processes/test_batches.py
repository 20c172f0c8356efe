"""A batch through real processes that are killed: frontends first, then the whole engine."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.processes.server import Server, eventually

COMPLETIONS: Any = "/v1/completions"
FLAGS = ["--dtype", "float32", "--kv-cache-memory", "64M", "--batch-concurrency", "4", "--frontends", "2"]


def body(number: int) -> dict[str, Any]:
    return {"model": "quire-demo", "prompt": f"Once upon a time {number}", "max_tokens": 60, "temperature": 0, "ignore_eos": True}


@pytest.mark.slow
def test_a_batch_outlives_everything(tmp_path: Path) -> None:
    def done(server: Server) -> int:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=5) as client:
            counts = client.batches.retrieve(identity).request_counts
        assert counts is not None and counts.failed == 0
        return counts.completed

    lines = [{"custom_id": f"{number}", "method": "POST", "url": COMPLETIONS, "body": body(number)} for number in range(60)]
    with Server(*FLAGS, runtime=tmp_path) as server:
        with openai.OpenAI(base_url=f"{server.ready().url}/v1", api_key="none") as client:
            file = client.files.create(file=("in.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
            identity = client.batches.create(input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h").id
        eventually(lambda: done(server) >= 10)
        first = done(server)
        for name, pid in server.children().items():
            if name.startswith("quire-front"):
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: done(server) >= first + 5, 60)
    with Server(*FLAGS, runtime=tmp_path) as server:
        server.ready()
        assert done(server) >= first + 5
        eventually(lambda: done(server) == 60, 90)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            eventually(lambda: client.batches.retrieve(identity).status == "completed")
            batch = client.batches.retrieve(identity)
            assert batch.output_file_id is not None and batch.usage is not None and batch.usage.output_tokens == 60 * 60
            found = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
        assert [each["custom_id"] for each in found] == [f"{number}" for number in range(60)]
        for number in (0, 17, 59):
            assert found[number]["response"]["body"]["choices"][0]["text"] == server.post(COMPLETIONS, body(number))["choices"][0]["text"]

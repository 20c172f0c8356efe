"""/openapi.json: complete, valid, and kept by the server: schemathesis sends what it describes and what it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from frontend.app import NAMED_ROUTES, ROUTES
from frontend.openapi import OPERATIONS
from tests.api.server import ApiServer
from tests.processes.server import ROOT, Server

# What the schemas cannot say is status 400 (a prompt too long, fields that exclude each other), so not all that fits them is accepted.
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
]
EXAMPLES = 5
SEED = 20261126


def test_every_route_is_described() -> None:
    routes = {(method, path) for path, methods in {**ROUTES, **NAMED_ROUTES}.items() for method in methods}
    assert set(OPERATIONS) == routes, "frontend/openapi.py and frontend/app.py differ"


def test_the_document(server: ApiServer, scripted: ApiServer) -> None:
    status, document = server.get("/openapi.json")
    assert status == 200 and document["openapi"] == "3.1.0"
    names = set(document["components"]["schemas"])
    references: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            references.update([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
            for inner in node.values():
                walk(inner)
        elif isinstance(node, list):
            for inner in node:
                walk(inner)

    walk(document)
    assert references == {f"#/components/schemas/{name}" for name in names}
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert {"200", "4XX", "5XX"} <= set(operation["responses"]), (method, path)
            assert operation["security"] == []
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(ids)) == len(ids) == len(OPERATIONS)
    keyed = scripted.get("/openapi.json", {"x-api-key": "sk-one"})[1]
    assert scripted.get("/openapi.json")[0] == 401
    assert keyed["paths"]["/v1/models"]["get"]["security"] == [{"bearer": []}, {"x-api-key": []}]
    assert keyed["paths"]["/health"]["get"]["security"] == []


def test_a_start_does_without_it() -> None:
    code = "import sys, frontend.run; sys.exit(any(name in sys.modules for name in ('frontend.openapi', 'frontend.schemas.answers')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ["--kv-cache-memory", "32M", "--max-body-bytes", "200000", "--grammar-compile-timeout", "1"]
    with Server(*flags, runtime=tmp_path_factory.mktemp("r")) as running:
        yield running.ready()


def test_schemathesis(demo: Server, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{demo.url}/openapi.json", "--checks", ",".join(CHECKS), "--seed", str(SEED),
        "--max-examples", str(EXAMPLES), "--phases", "coverage,fuzzing", "--max-time", "50", "--request-timeout", "100",
        "--generation-database", "none", "--no-color", "--continue-on-failure", "--suppress-health-check", "all",
    ]  # fmt: skip
    # A request's own deadline may pass: that is what its `timeout` asks for.
    (tmp_path / "schemathesis.toml").write_text('[checks]\nnot_a_server_error.expected-statuses = ["2xx", "4xx", "504"]\n')
    environment = {**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-2_000:]
    assert demo.post("/v1/completions", {"prompt": "x", "max_tokens": 1})["choices"]
    assert json.load(demo.open("/health"))["status"] == "ok"

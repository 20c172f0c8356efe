"""Structured output through real processes and the bundled model; judges that know nothing of quire: jsonschema, re, a parser."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bench import structured as generations
from ipc.errors import InvalidRequestError
from quire import LLM, SamplingParams, StructuredOutputsParams
from tests.processes.schemas import SCHEMAS
from tests.processes.server import Server, children_of, eventually

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Give me an answer."}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    runtime = tmp_path_factory.mktemp("r")
    # float32: in bf16 a token near a tie may change when a replay computes as one prefill what was decoded one by one.
    flags = ["--dtype", "float32", "--max-num-seqs", "16", "--kv-cache-memory", "64M", "--grammar-compile-timeout", "2"]
    with Server(*flags, runtime=runtime) as running:
        yield running.ready()


def judged(schema: Any, text: str, reason: str) -> str:
    verdict = generations.judge(schema, text, reason)
    assert verdict in ("valid", "cut"), verdict
    return verdict


def test_every_schema_is_followed(server: Server) -> None:
    """Each of them with response_format, twice: likely tokens, and wild ones."""
    assert len(SCHEMAS) >= 60

    def ask(name: str, temperature: float) -> str:
        body = {
            "messages": MESSAGES, "max_tokens": 250, "temperature": temperature, "seed": 7,
            "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMAS[name], "strict": True}},
        }  # fmt: skip
        choice = server.post(CHAT, body)["choices"][0]
        return judged(SCHEMAS[name], choice["message"]["content"], choice["finish_reason"])

    with ThreadPoolExecutor(12) as pool:
        verdicts = list(pool.map(ask, [*SCHEMAS, *SCHEMAS], [0.0] * len(SCHEMAS) + [1.5] * len(SCHEMAS)))
    assert verdicts.count("valid") > 0.85 * len(verdicts), "hardly anything ended by itself, so hardly anything was checked"


def completion(server: Server, seed: int = 0, **constraint: Any) -> dict[str, Any]:
    body = {"prompt": "Answer:", "max_tokens": 60, "temperature": 1.0, "seed": seed, **constraint}
    choice: dict[str, Any] = server.post(COMPLETIONS, body)["choices"][0]
    return choice


@pytest.mark.parametrize(
    "pattern",
    [r"\d{3}-\d{4}", "(cat|dog) (eats|sleeps)", "[A-F]{4}", r"a/b\\c", "x{2,5}y?", "[^a-z]{3}", "(?i)hello", "naïve|日本", r"^\w+$"],
)
def test_regex(server: Server, pattern: str) -> None:
    for seed in range(3):
        choice = completion(server, seed, structured_outputs={"regex": pattern})
        if choice["finish_reason"] == "stop":
            assert re.fullmatch(pattern, choice["text"]), choice["text"]
            assert pattern != r"\d{3}-\d{4}" or choice["text"].isascii()
        else:
            assert pattern == r"^\w+$"


def test_choice(server: Server) -> None:
    choices = ["yes", "no", 'a "quoted" one', "two\nlines", "日本", "back\\slash", "yes and no"]
    found = set()
    for seed in range(12):
        choice = completion(server, seed, structured_outputs={"choice": choices}, temperature=2.0)
        assert choice["finish_reason"] == "stop" and choice["text"] in choices
        found.add(choice["text"])
    assert len(found) > 1, "the model has no say"


LARK = """
start: sum
sum: product ("+" product)~0..2
product: number | "(" number "*" number ")"
number: /[1-9][0-9]?/
"""
GBNF = 'root ::= "[" item ("," item)? "]"\nitem ::= "a" | "b" [0-9]\n'


def test_grammars(server: Server) -> None:
    for seed in range(4):
        choice = completion(server, seed, structured_outputs={"grammar": LARK})
        assert choice["finish_reason"] == "stop"
        assert re.fullmatch(r"[0-9+*()]+", choice["text"])
        compile(choice["text"], "output", "eval")  # parses as Python; nothing runs it
        choice = completion(server, seed, structured_outputs={"grammar": GBNF})
        assert re.fullmatch(r"\[(a|b\d)(,(a|b\d))?\]", choice["text"])


def test_json_object_and_whitespace(server: Server) -> None:
    choice = completion(server, response_format={"type": "json_object"}, max_tokens=200)
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["text"]), dict)
    assert choice["text"].startswith("{")
    schema = SCHEMAS["nested"]
    compact = completion(server, structured_outputs={"json": schema})["text"]
    assert not re.search(r"\s", compact)
    spaced = completion(server, structured_outputs={"json": schema, "whitespace_pattern": " "})
    if spaced["finish_reason"] == "stop":
        jsonschema.validate(json.loads(spaced["text"]), schema)
        assert " " in spaced["text"] and "  " not in spaced["text"]


def test_structural_tag(server: Server) -> None:
    """Free text, but what a tag begins follows its schema: here forced to begin by a bias toward the trigger."""
    tag = {"begin": "<f=add>", "schema": SCHEMAS["object"], "end": "</f>"}
    for given in (
        {"type": "structural_tag", "structures": [tag], "triggers": ["<f="]},
        {"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": ["<f="], "tags": [
            {"begin": "<f=add>", "content": {"type": "json_schema", "json_schema": SCHEMAS["object"]}, "end": "</f>"}]}},
    ):  # fmt: skip
        ids = server.post("/tokenize", {"prompt": "<f=", "add_special_tokens": False})["tokens"]
        choice = completion(server, response_format=given, max_tokens=120, logit_bias={str(ids[0]): 100 if len(ids) == 1 else 0})
        for inner in re.findall(r"<f=add>(.*?)</f>", choice["text"], re.S):
            jsonschema.validate(json.loads(inner), SCHEMAS["object"])
        assert "<f=" not in choice["text"].replace("<f=add>", "") or choice["finish_reason"] == "length"


def test_old_names(server: Server) -> None:
    assert completion(server, guided_choice=["up", "down"])["text"] in ("up", "down")
    assert re.fullmatch("[ab]{3}", completion(server, guided_regex="[ab]{3}")["text"])
    assert completion(server, guided_json=SCHEMAS["const"])["text"] == '"fixed"'
    assert completion(server, guided_json=json.dumps(SCHEMAS["const"]))["text"] == '"fixed"'
    assert completion(server, guided_grammar='start: "x" "y"')["text"] == "xy"
    assert completion(server, regex="z{4}")["text"] == "zzzz"


def test_n_and_streaming(server: Server) -> None:
    """Each completion has a state of its own, and a stream says what the whole answer says."""
    schema = SCHEMAS["array of objects"]
    body = {
        "messages": MESSAGES, "max_tokens": 200, "temperature": 1.2, "seed": 3, "n": 4,
        "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}},
    }  # fmt: skip
    whole = {choice["index"]: choice["message"]["content"] for choice in server.post(CHAT, body)["choices"]}
    parts: dict[int, str] = dict.fromkeys(range(4), "")
    reasons: dict[int, str] = {}
    for chunk in server.events(CHAT, body):
        for choice in chunk["choices"]:
            parts[choice["index"]] += choice["delta"].get("content") or ""
            if choice["finish_reason"]:
                reasons[choice["index"]] = choice["finish_reason"]
    assert parts == whole and len(set(whole.values())) > 1
    assert {judged(schema, parts[index], reasons[index]) for index in parts} == {"valid"}


def test_other_fields_still_mean_something(server: Server) -> None:
    """Log-probabilities are the model's own; what the mask leaves open, other fields decide; where they leave nothing, the mask wins."""
    choice = completion(server, structured_outputs={"choice": ["abc", "xyz"]}, logprobs=2, temperature=0)
    assert choice["text"] in ("abc", "xyz")
    assert len(choice["logprobs"]["tokens"]) == len(choice["logprobs"]["token_logprobs"])
    assert any(value < -1 for value in choice["logprobs"]["token_logprobs"]), "what the mask forced counts as likely"
    other = "xyz" if choice["text"] == "abc" else "abc"
    banned = completion(server, structured_outputs={"choice": ["abc", "xyz"]}, bad_words=[choice["text"][0]], temperature=0)
    assert banned["text"] in (other, choice["text"])
    only = completion(server, structured_outputs={"choice": ["abc"]}, min_tokens=40, bad_words=["a", "b", "c", "abc"])
    assert only["text"] == "abc" and only["finish_reason"] == "stop"


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "deep": ({"structured_outputs": {"json": '{"type":"array","items":' * 3000 + "{}" + "}" * 3000}}, "structured_outputs"),
    "endless recursion": ({"structured_outputs": {"json": {"$ref": "#"}}}, "structured_outputs"),
    "mutual recursion": (
        {"guided_json": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}}, "guided_json",
    ),
    "huge": ({"structured_outputs": {"json": {"enum": ["x" * 200_000]}}}, "structured_outputs"),
    "huge enum": ({"structured_outputs": {"json": {"enum": [f"value {n}" for n in range(9000)] + ["y" * 60] * 900}}}, "structured_outputs"),
    "nested groups": ({"structured_outputs": {"regex": "(" * 60_000 + "a" + ")" * 60_000}}, "structured_outputs"),
    "open group": ({"structured_outputs": {"regex": "(a"}}, "structured_outputs"),
    "back reference": ({"structured_outputs": {"regex": r"(a)\1"}}, "structured_outputs"),
    "look-ahead": ({"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs"),
    "deep grammar": ({"structured_outputs": {"grammar": "start: " + "(" * 20_000 + '"a"' + ")" * 20_000}}, "structured_outputs"),
    "unknown rule": ({"structured_outputs": {"grammar": "start: foo"}}, "structured_outputs"),
    "not": ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}}, "response_format"),
    "uniqueItems": ({"guided_json": {"type": "array", "uniqueItems": True}}, "guided_json"),
    "lenient by itself": ({"structured_outputs": {"json": {"x-guidance": {"lenient": True}, "not": {}}}}, "structured_outputs"),
    "unsatisfiable": ({"structured_outputs": {"json": {"type": "integer", "minimum": 5, "maximum": 3}}}, "structured_outputs"),
    "remote reference": ({"structured_outputs": {"json": {"$ref": "http://127.0.0.1:1/x"}}}, "structured_outputs"),
    "unknown type": ({"structured_outputs": {"json": {"type": "strange"}}}, "structured_outputs"),
}  # fmt: skip


def refused(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.post(COMPLETIONS, {"prompt": "x", "max_tokens": 3, **body})
    assert caught.value.code == 400
    error: dict[str, Any] = json.loads(caught.value.read())["error"]
    return error


def test_hostile_grammars_are_refused_in_time(server: Server) -> None:
    """And a stream beside them goes on."""
    gaps: list[float] = []
    stopped = threading.Event()

    def read() -> None:
        while not stopped.is_set():
            last = time.monotonic()
            for _ in server.events(COMPLETIONS, {"prompt": "Once upon a time", "max_tokens": 300, "ignore_eos": True}):
                now = time.monotonic()
                gaps.append(now - last)
                last = now

    completion(server, structured_outputs={"choice": ["warm"]})
    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(2):
            for name, (body, param) in HOSTILE.items():
                error = refused(server, body)
                assert error["param"] == param and error["type"] == "invalid_request_error", (name, error)
                assert "<state>" not in error["message"] and "\n" not in error["message"] and "/" + "work" not in error["message"]
    finally:
        stopped.set()
        reader.join()
    # Compiling that held up the loop would show in each of the two rounds, for each grammar that is not refused at once; the machine may be
    # busy for a moment, too.
    assert len(gaps) > 100 and sum(gap > 2.0 for gap in gaps) <= 3, sorted(gaps)[-5:]


def test_grammars_die_and_live_with_their_processes(server: Server) -> None:
    """A killed compiler is replaced; a killed worker's and scheduler's requests go on under their grammars."""
    server.with_kernels()
    completion(server, structured_outputs={"choice": ["warm"]})
    scheduler = server.children()["quire-sched"]
    compilers = children_of(scheduler)
    assert compilers
    for pid in compilers:
        os.kill(pid, signal.SIGKILL)
    assert completion(server, structured_outputs={"choice": ["after", "the end"]})["text"] in ("after", "the end")
    pattern = "([a-z]{3} ){60}[A-Z]{3}"
    body = {"prompt": "Words:", "max_tokens": 400, "temperature": 1.0, "seed": 5, "structured_outputs": {"regex": pattern}}
    quiet = server.post(COMPLETIONS, body)["choices"][0]
    assert re.fullmatch(pattern, quiet["text"])
    for victim in ("quire-worke-0", "quire-sched"):
        text, reason, killed = "", "", False
        for chunk in server.events(COMPLETIONS, body):
            text += chunk["choices"][0]["text"]
            reason = chunk["choices"][0]["finish_reason"] or reason
            if len(text) > 60 and not killed:
                killed = True
                os.kill(server.children()[victim], signal.SIGKILL)
        assert killed and (text, reason) == (quiet["text"], "stop"), victim
    eventually(lambda: "quire-sched" in server.children())


def test_python(tmp_path: Path) -> None:
    """LLM takes the same constraints; a batch mixes rows with and without; rows beyond the limit wait; turned off is turned off."""
    schema = SCHEMAS["object"]
    with LLM(dtype="float32", max_num_seqs=8, kv_cache_memory="32M", max_grammar_rows=2) as llm:
        wishes = [StructuredOutputsParams(json=schema) if seed % 2 else None for seed in range(12)]
        mixed = [SamplingParams(max_tokens=80, seed=seed, structured_outputs=wish) for seed, wish in enumerate(wishes)]
        outputs = [output.outputs[0] for output in llm.generate(["Go:"] * 12, mixed, use_tqdm=False)]
        free = [llm.generate("Go:", mixed[seed], use_tqdm=False)[0].outputs[0] for seed in range(0, 12, 2)]
        assert [output.text for output in outputs[::2]] == [output.text for output in free]
        assert all(judged(schema, output.text, output.finish_reason or "") for output in outputs[1::2])
        with pytest.raises(InvalidRequestError, match="exactly one"):
            llm.generate("x", SamplingParams(structured_outputs=StructuredOutputsParams(regex="a", choice=["b"])))
    with LLM(max_num_seqs=2, kv_cache_memory="16M", grammar_processes=0) as llm, pytest.raises(InvalidRequestError, match="turned off"):
        llm.generate("x", SamplingParams(structured_outputs=StructuredOutputsParams(regex="a")), use_tqdm=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_generations() -> None:
    """As `python -m bench.structured --count 10000`."""
    with LLM(max_num_seqs=32, kv_cache_memory="64M") as llm:
        counts, broken, _ = generations.run(llm, 10_000, seed=1)
    assert not broken, broken[:3]
    assert counts["valid"] > 8_000

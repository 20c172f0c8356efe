"""Structured generations over random schemas through a whole engine, each judged by jsonschema; or what grammars cost in speed.

    python -m bench.structured [--count 1000] [--model DIR] [--seed 0] [--in-flight 32] [--overhead] [--json]

A generation counts as valid if it ended by itself and its text is JSON that its schema accepts, as cut if it ended by length. A schema
that the engine refuses is counted, too: refused is honest, broken is not.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from statistics import median
from typing import Any

import jsonschema

from ipc.errors import InvalidRequestError
from ipc.grammar import StructuredOutputsParams
from ipc.sampling_params import SamplingParams

WORDS = "name size kind price tags note id items unit done".split()
FORMATS = ["date", "time", "date-time", "ipv4", "uuid", "email", "hostname"]
PATTERNS = ["^[a-z]{2,6}$", "^\\d{3}-\\d{4}$", "^(ab|cd)+$", "^[A-Z][a-z]* [A-Z][a-z]*$", "^#[0-9a-f]{6}$"]


def random_schema(rng: random.Random, depth: int = 3) -> Any:
    """A schema whose documents are of bounded size, over most keywords that mean something for generation."""
    simple = [_string, _number, _integer, _enum, _const, _atom]
    nested = [_object, _object, _array, _any_of, _all_of, _tuple]
    kinds = simple if depth == 0 else simple + nested * 2
    return rng.choice(kinds)(rng, depth - 1)


def _string(rng: random.Random, _depth: int) -> Any:
    match rng.randrange(4):
        case 0:
            return {"type": "string", "pattern": rng.choice(PATTERNS)}
        case 1:
            return {"type": "string", "format": rng.choice(FORMATS)}
        case 2:
            low = rng.randint(0, 5)
            return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 8)}
    return {"type": "string", "maxLength": rng.randint(1, 12)}


def _number(rng: random.Random, _depth: int) -> Any:
    low = rng.randint(-100, 100)
    key = rng.choice(["minimum", "exclusiveMinimum"])
    return {"type": "number", key: low, "maximum": low + rng.randint(1, 50)}


def _integer(rng: random.Random, _depth: int) -> Any:
    low = rng.randint(-1000, 1000)
    schema = {"type": "integer", "minimum": low, "maximum": low + rng.randint(10, 5000)}
    return schema | ({"multipleOf": rng.randint(2, 7)} if rng.random() < 0.3 else {})


def _enum(rng: random.Random, _depth: int) -> Any:
    values: list[Any] = ["red", "dark green", 'with "quotes"', "naïve", 7, -1.5, True, None, [1, 2], {"a": 1}]
    return {"enum": rng.sample(values, rng.randint(1, 6))}


def _const(rng: random.Random, _depth: int) -> Any:
    return {"const": rng.choice(["fixed", 3, False, None, ["x"], "tab\there"])}


def _atom(rng: random.Random, _depth: int) -> Any:
    return {"type": rng.choice(["boolean", "null", ["boolean", "null"]])}


def _object(rng: random.Random, depth: int) -> Any:
    names = rng.sample(WORDS, rng.randint(1, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: random_schema(rng, depth) for name in names},
        "required": rng.sample(names, rng.randint(0, len(names))),
        "additionalProperties": False,
    }
    if depth > 0 and rng.random() < 0.3:
        schema["$defs"] = {"part": random_schema(rng, 0)}
        schema["properties"][names[0]] = {"$ref": "#/$defs/part"}
        # A reference counts from the document's root, so only the outermost object may have its own.
        return (
            schema
            if depth == 2
            else {key: value for key, value in schema.items() if key != "$defs"}
            | {"properties": schema["properties"] | {names[0]: schema["$defs"]["part"]}}
        )
    return schema


def _array(rng: random.Random, depth: int) -> Any:
    low = rng.randint(0, 2)
    return {"type": "array", "items": random_schema(rng, depth), "minItems": low, "maxItems": low + rng.randint(0, 2)}


def _tuple(rng: random.Random, depth: int) -> Any:
    first = [random_schema(rng, depth) for _ in range(rng.randint(1, 3))]
    return {"type": "array", "prefixItems": first, "items": False, "minItems": len(first)}


def _any_of(rng: random.Random, depth: int) -> Any:
    return {"anyOf": [random_schema(rng, depth) for _ in range(rng.randint(2, 3))]}


def _all_of(rng: random.Random, _depth: int) -> Any:
    low = rng.randint(0, 50)
    return {"allOf": [{"type": "integer", "minimum": low}, {"maximum": low + rng.randint(0, 50)}]}


def judge(schema: Any, text: str, reason: str | None) -> str:
    """'valid', 'cut', or what is broken."""
    if reason == "length":
        return "cut"
    try:
        document = json.loads(text)
    except ValueError as error:
        return f"broken: {error} in {text[:200]!r}"
    error = next(jsonschema.Draft202012Validator(schema).iter_errors(document), None)
    return "valid" if error is None else f"broken: {error.message[:200]} in {text[:200]!r} of {json.dumps(schema)[:400]}"


def run(llm: Any, count: int, seed: int, max_tokens: int = 200) -> tuple[Counter[str], list[str], int]:
    """Counts by verdict, what was broken, and tokens generated, over `count` random schemas in batches."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    broken: list[str] = []
    tokens = 0
    while (done := sum(counts.values())) < count:
        schemas = [random_schema(rng) for _ in range(min(200, count - done))]
        good = []
        for schema in schemas:
            try:
                llm.generate("Ok:", _params(schema, rng, 1), use_tqdm=False)
                good.append(schema)
            except InvalidRequestError:
                counts["refused"] += 1
        outputs = llm.generate(["Give me JSON:"] * len(good), [_params(schema, rng, max_tokens) for schema in good], use_tqdm=False)
        for schema, output in zip(good, outputs):
            answer = output.outputs[0]
            tokens += len(answer.token_ids)
            verdict = judge(schema, answer.text, answer.finish_reason)
            counts[verdict.partition(":")[0]] += 1
            if verdict.startswith("broken"):
                broken.append(verdict)
    return counts, broken, tokens


def _params(schema: Any, rng: random.Random, max_tokens: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=rng.choice([0.0, 0.7, 1.0, 1.5]),
        seed=rng.randrange(2**31),
        structured_outputs=StructuredOutputsParams(json=schema if isinstance(schema, dict) else json.dumps(schema)),
    )


def overhead(llm: Any, rows: int, tokens: int = 150) -> dict[str, float]:
    """Tokens per second of a batch without grammars, all under one, and half of it: the best of three rounds. *_share: the median over
    rounds of what is left of the speed without grammars. *_steps: the engine's steps in the last round, which no busy machine changes."""
    rule = StructuredOutputsParams(regex=f"[a-z ]{{{4 * tokens},}}")

    def rate(bound: list[bool]) -> float:
        params = [
            SamplingParams(max_tokens=tokens, temperature=1.0, seed=row, ignore_eos=True, structured_outputs=rule if under else None)
            for row, under in enumerate(bound)
        ]
        began = time.perf_counter()
        llm.generate(["Once"] * len(bound), params, use_tqdm=False)
        return len(bound) * tokens / (time.perf_counter() - began)

    steps: dict[str, int] = {}

    def counted(name: str, bound: list[bool]) -> float:
        before = llm.engine_stats().steps
        tokens_per_second = rate(bound)
        steps[f"{name}_steps"] = llm.engine_stats().steps - before
        return tokens_per_second

    rate([True] * rows)
    kinds = {"free": [False] * rows, "bound": [True] * rows, "mixed": [row % 2 == 0 for row in range(rows)]}
    rounds = [{name: counted(name, bound) for name, bound in kinds.items()} for _ in range(3)]
    best = {name: round(max(each[name] for each in rounds)) for name in kinds}
    shares = {f"{name}_share": round(median(each[name] / each["free"] for each in rounds), 2) for name in ("bound", "mixed")}
    return best | shares | steps


def main() -> None:
    from quire import LLM

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="generations")
    parser.add_argument("--model", default="", help="model directory; the bundled one if empty")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--in-flight", type=int, default=32, help="rows of the batch")
    parser.add_argument("--overhead", action="store_true", help="measure throughput with and without a grammar instead")
    parser.add_argument("--json", action="store_true", help="also print the results as one line of JSON, last")
    arguments = parser.parse_args()
    with LLM(arguments.model, max_num_seqs=arguments.in_flight) as llm:
        if arguments.overhead:
            for rows in (1, 8, arguments.in_flight):
                print(f"{rows} rows: tokens/s {overhead(llm, rows)}")
            return
        began = time.perf_counter()
        counts, broken, tokens = run(llm, arguments.count, arguments.seed)
        seconds = time.perf_counter() - began
    for line in broken:
        print(line)
    print(f"{dict(counts)} in {seconds:.1f} s, {tokens} tokens, {tokens / seconds:.0f} tokens/s")
    if arguments.json:
        print(json.dumps({"counts": dict(counts), "seconds": round(seconds, 1), "tokens": tokens}))
    raise SystemExit(1 if broken else 0)


if __name__ == "__main__":
    main()

"""Text to JSON values by a tool's parameter schema, for formats that do not write JSON."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_LITERAL = 64 * 1024
ANYTHING = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})
Schema = Mapping[str, Any]


def types_of(parameters: Schema, name: str) -> frozenset[str]:
    """JSON types that the property `name` may have; empty if the schema does not say."""
    properties = parameters.get("properties")
    found = properties.get(name) if isinstance(properties, Mapping) else None
    return _types(found, parameters, 0) if isinstance(found, Mapping) else frozenset()


def _types(schema: Any, root: Schema, depth: int) -> frozenset[str]:
    if not isinstance(schema, Mapping) or depth > 8:
        return frozenset()
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        target: Any = root
        for part in reference[2:].split("/"):
            target = target.get(part) if isinstance(target, Mapping) else None
        return _types(target, root, depth + 1)
    given = schema.get("type")
    if isinstance(given, str):
        return frozenset({given})
    if isinstance(given, list):
        return frozenset(each for each in given if isinstance(each, str))
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list):
            return frozenset().union(*(_types(each, root, depth + 1) for each in schema[key]))
    values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else []
    return frozenset(type_name(value) for value in values)


def type_name(value: Any) -> str:
    """The JSON type of a decoded value."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def is_text(types: frozenset[str]) -> bool:
    """Whether a value of these types is taken as it is written."""
    return types <= {"string"}


def to_json(text: str, types: frozenset[str]) -> str:
    """`text` as JSON of one of `types`; as a string if it is none of them."""
    if is_text(types):
        return json.dumps(text, ensure_ascii=False)
    for read in (json.loads, literal):
        try:
            value = read(text.strip())
            written = dump(value)
        except (ValueError, RecursionError):
            continue
        kind = type_name(value)
        if kind in types or (kind == "integer" and "number" in types) or "string" not in types:
            return written
    return json.dumps(text, ensure_ascii=False)


def dump(value: Any) -> str:
    """JSON text. Raises ValueError for infinities and NaN."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # Half a character, as Python's escapes can write it, may stand in JSON as an escape only.
    return json.dumps(value, allow_nan=False) if _SURROGATE.search(text) else text


def literal(text: str) -> Any:
    """A Python literal of JSON's types: numbers, strings, lists, dicts, True, False, None, and JSON's names for these.

    Raises ValueError for anything else. Nothing is evaluated: the syntax tree is read.
    """
    return value_of(parse_expression(text))


def parse_expression(text: str) -> ast.expr:
    """The syntax tree of one expression. Raises ValueError."""
    if len(text) > MAX_LITERAL or _depth(text) > 64:
        raise ValueError("too large")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # escapes that Python does not know
            return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("not an expression") from None


def _depth(text: str) -> int:
    """How deep brackets, signs and the like could nest at most: the parser's own stack must not be what stops it."""
    depth = deepest = 0
    run = longest = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
        run = run + 1 if char in "+-~ " else 0
        longest = max(longest, run)
    return max(deepest, longest // 64)


def value_of(node: ast.expr) -> Any:
    """What a syntax tree of literals stands for. Raises ValueError."""
    match node:
        case ast.Constant(value=value) if value is None or isinstance(value, (str, int, float, bool)):
            return value
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=number)) if isinstance(
            number, (int, float)
        ) and not isinstance(number, bool):
            return -number if isinstance(sign, ast.USub) else number
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [value_of(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            found = {}
            for key, item in zip(keys, values):
                name = value_of(key) if key is not None else None
                if not isinstance(name, str):
                    raise ValueError("not an object")
                found[name] = value_of(item)
            return found
        case ast.Name(id=("true" | "false" | "null") as word):
            return {"true": True, "false": False, "null": None}[word]
    raise ValueError("not a literal")

"""Schemas for structured output, over the keywords that people use; documents are of bounded size so that a weak model finishes."""

from __future__ import annotations

from typing import Any


def text(limit: int = 8, **more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": limit, **more}


def whole(low: int = 0, high: int = 99) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high}


def an_object(required: list[str] | None = None, more: bool | dict[str, Any] = False, **properties: Any) -> dict[str, Any]:
    needed = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": more}


def a_list(items: Any, low: int = 0, high: int = 3) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": low, "maxItems": high}


_BRANCH = an_object(["value"], value=whole(), left={"$ref": "#/$defs/tree"}, right={"$ref": "#/$defs/tree"})
_POINT = an_object(x=whole(-9, 9), y=whole(-9, 9))

SCHEMAS: dict[str, Any] = {
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "integer": whole(),
    "negative integer": whole(-500, -3),
    "exclusive bounds": {"type": "integer", "exclusiveMinimum": 4, "exclusiveMaximum": 6},
    "multiple": {"type": "integer", "minimum": 0, "maximum": 1000, "multipleOf": 7},
    "number": {"type": "number", "minimum": 0, "maximum": 1},
    "small number": {"type": "number", "minimum": -0.5, "maximum": 0.25},
    "string": text(),
    "empty string": text(0),
    "string of a length": text(6, minLength=4),
    "pattern": {"type": "string", "pattern": "^[a-z]{3}-[0-9]{2}$"},
    "unanchored pattern": {"type": "string", "pattern": "^.{0,4}cat.{0,4}$"},
    "alternatives": {"type": "string", "pattern": "^(yes|no|maybe)$"},
    "digits": {"type": "string", "pattern": "^\\d{4}$"},
    "unicode": {"type": "string", "pattern": "^[äöü]{2,4}$"},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
    "date-time": {"type": "string", "format": "date-time"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "uuid": {"type": "string", "format": "uuid"},
    "enum of strings": {"enum": ["red", "green", "blue"]},
    "enum of all kinds": {"enum": ["a", 1, 2.5, True, None, [1], {"k": "v"}]},
    "enum with odd characters": {"enum": ['"quoted"', "back\\slash", "new\nline", "naïve", "日本", "😀", ""]},
    "const": {"const": "fixed"},
    "const object": {"const": {"a": [1, {"b": None}]}},
    "several types": {"type": ["integer", "null"], "minimum": 1, "maximum": 5},
    "object": an_object(name=text(), age=whole()),
    "optional properties": an_object([], a=whole(), b=text(4), c={"type": "boolean"}),
    "some required": an_object(["b"], a=whole(), b=text(4)),
    "no properties": {"type": "object", "additionalProperties": False},
    "odd names": an_object(**{"with space": whole(), 'quote"': whole(), "ünï": whole(), "": whole()}),
    "nested": an_object(a=an_object(b=an_object(c=whole()))),
    "typed additional properties": {
        "type": "object", "properties": {"k": whole()}, "required": ["k"], "additionalProperties": whole(), "maxProperties": 3,
    },
    "pattern properties": {
        "type": "object", "patternProperties": {"^x[0-9]$": whole()}, "additionalProperties": False, "maxProperties": 2,
    },
    "array": a_list(whole()),
    "array of a length": a_list({"type": "boolean"}, 2, 2),
    "array of strings": a_list(text(5), 1, 3),
    "array of objects": a_list(_POINT, 1, 2),
    "array of arrays": a_list(a_list(whole(), 0, 2), 1, 2),
    "empty array": {"type": "array", "maxItems": 0},
    "tuple": {"type": "array", "prefixItems": [whole(), text(4), {"type": "boolean"}], "items": False, "minItems": 3},
    "tuple with a tail": {"type": "array", "prefixItems": [text(3)], "items": whole(), "minItems": 2, "maxItems": 4},
    "anyOf": {"anyOf": [whole(), text(4), {"type": "null"}]},
    "anyOf of objects": {"anyOf": [an_object(kind={"const": "a"}, x=whole()), an_object(kind={"const": "b"}, y=text(3))]},
    "oneOf told apart": {"oneOf": [an_object(kind={"const": "a"}, x=whole()), an_object(kind={"const": "b"}, y=text(3))]},
    "allOf": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]},
    "optional value": an_object(a={"anyOf": [whole(), {"type": "null"}]}),
    "reference": {"$defs": {"point": _POINT}, "type": "array", "items": {"$ref": "#/$defs/point"}, "minItems": 1, "maxItems": 2},
    "definitions, old name": {"definitions": {"n": whole()}, **an_object(a={"$ref": "#/definitions/n"})},
    "two references": {"$defs": {"n": whole(), "s": text(3)}, **an_object(a={"$ref": "#/$defs/n"}, b={"$ref": "#/$defs/s"})},
    "recursion that may end": {"$defs": {"tree": {"anyOf": [{"type": "null"}, _BRANCH]}}, "$ref": "#/$defs/tree"},
    "linked list": {"$defs": {"l": an_object(v=whole(), next={"anyOf": [{"$ref": "#/$defs/l"}, {"type": "null"}]})}, "$ref": "#/$defs/l"},
    "title and description": {"title": "T", "description": "d", **an_object(a=whole() | {"title": "A", "default": 1})},
    "with $schema": {"$schema": "https://json-schema.org/draft/2020-12/schema", **an_object(a=whole())},
    "pydantic's": {
        "$defs": {"Size": {"enum": ["s", "m"], "title": "Size", "type": "string"}},
        "properties": {"name": {"title": "Name", "type": "string", "maxLength": 6}, "size": {"$ref": "#/$defs/Size"},
                       "tags": {"items": {"type": "string", "maxLength": 4}, "title": "Tags", "type": "array", "maxItems": 2}},
        "required": ["name", "size", "tags"], "title": "Item", "type": "object", "additionalProperties": False,
    },
    "a call": an_object(name={"const": "get_weather"}, arguments=an_object(city=text(10), unit={"enum": ["c", "f"]})),
    "many properties": an_object(**{f"p{number}": {"type": "boolean"} for number in range(20)}),
    "long enum": {"enum": [f"value{number}" for number in range(500)]},
    "deep": an_object(a=a_list(an_object(b=a_list(an_object(c={"type": "boolean"}), 1, 1)), 1, 1)),
    "property without a type": an_object(a=whole(), b={"enum": [1, "x"]}),
    "large bounds": {"type": "integer", "minimum": 10**15, "maximum": 10**15 + 10**6},
    "min and max properties": {
        "type": "object", "properties": {"a": whole(), "b": whole()}, "required": ["a"], "additionalProperties": False, "minProperties": 1,
    },
    "string of one length": {"type": "string", "maxLength": 3, "minLength": 3},
}  # fmt: skip

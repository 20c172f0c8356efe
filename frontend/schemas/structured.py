"""The many names under which clients ask for structured output, as the one that the engine knows.

OpenAI's response_format; vLLM's structured_outputs and, before it, guided_json, guided_regex, guided_choice, guided_grammar,
structural_tag, guided_whitespace_pattern and guided_decoding_backend; SGLang's json_schema, regex and ebnf.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from frontend.http_errors import not_supported
from ipc.errors import InvalidRequestError
from ipc.grammar import FIELD, RESPONSE_FORMAT, StructuredOutputsParams, check_backend

if TYPE_CHECKING:
    from frontend.schemas.generation import GenerationRequest

# A client's field: the engine's.
OLD_NAMES = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "structural_tag": "structural_tag",
    "json_schema": "json",
    "regex": "regex",
    "ebnf": "grammar",
}
_OPTIONS = (
    "json",
    "regex",
    "choice",
    "grammar",
    "json_object",
    "structural_tag",
    "disable_any_whitespace",
    "whitespace_pattern",
    "backend",
)
# The backend honours a grammar or refuses it: there is nothing to fall back to.
_IGNORED = ("disable_fallback",)
BACKEND = "guided_decoding_backend"


def structured_outputs(body: GenerationRequest) -> StructuredOutputsParams | None:
    """What the request's output must follow; None if it says nothing.

    Raises InvalidRequestError naming the field, also when two fields ask for something.
    """
    check_backend(body.guided_decoding_backend, BACKEND)
    found = [params for params in (_response_format(body.response_format), _own(body.structured_outputs)) if params is not None]
    for name, option in OLD_NAMES.items():
        value = getattr(body, name)
        if value is not None:
            pattern = body.guided_whitespace_pattern if option == "json" else None
            found.append(StructuredOutputsParams(**{option: value, "whitespace_pattern": pattern}, blame=name))
    if len(found) > 1:
        names = " and ".join(params.blame for params in found)
        raise InvalidRequestError(f"the output can follow one constraint only; {names} ask for more", found[1].blame)
    if body.guided_whitespace_pattern is not None and not (found and found[0].whitespace_pattern):
        raise InvalidRequestError("guided_whitespace_pattern needs guided_json", "guided_whitespace_pattern")
    return found[0].validate() if found else None


def _response_format(given: dict[str, Any] | None) -> StructuredOutputsParams | None:
    if given is None:
        return None
    match given.get("type"):
        case "text":
            return None
        case "json_object":
            return StructuredOutputsParams(json_object=True, blame=RESPONSE_FORMAT)
        case "json_schema":
            inner = given.get("json_schema")
            if not isinstance(inner, dict):
                raise InvalidRequestError("response_format of type json_schema needs an object json_schema", RESPONSE_FORMAT)
            schema = inner.get("schema")
            if not isinstance(schema, dict):
                raise InvalidRequestError("response_format.json_schema needs an object schema", RESPONSE_FORMAT)
            return StructuredOutputsParams(json=schema, blame=RESPONSE_FORMAT)
        case "structural_tag":
            return StructuredOutputsParams(structural_tag={name: given[name] for name in given if name != "type"}, blame=RESPONSE_FORMAT)
        case None:
            raise InvalidRequestError("response_format needs a type: text, json_object, json_schema or structural_tag", RESPONSE_FORMAT)
        case other:
            raise not_supported(
                f"response_format of type {other!r:.40} is not known; there are text, json_object, json_schema and structural_tag",
                RESPONSE_FORMAT,
            )


def _own(given: Any) -> StructuredOutputsParams | None:
    if given is None:
        return None
    if not isinstance(given, dict):
        raise InvalidRequestError("structured_outputs must be an object", FIELD)
    for name, value in given.items():
        if name not in _OPTIONS and name not in _IGNORED and value not in (None, False):
            raise not_supported(f"structured_outputs.{name:.40} is not supported by this version of quire", FIELD)
    return StructuredOutputsParams(**{name: given[name] for name in _OPTIONS if given.get(name) is not None})

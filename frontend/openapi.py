"""/openapi.json: every route with what it takes and answers, from the very shapes that decode requests. Imported when first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from frontend.auth import PUBLIC_PATHS
from frontend.file_store import OUTPUT, PURPOSES
from frontend.http_errors import Dialect, dialect_of_path
from frontend.schemas import answers
from frontend.schemas.batches import MAX_EXPIRY, MIN_EXPIRY, BatchRequest
from frontend.schemas.chat import ChatRequest
from frontend.schemas.completions import CompletionRequest
from frontend.schemas.embeddings import EmbeddingRequest
from frontend.schemas.messages import MessagesRequest
from frontend.schemas.ollama import OllamaChatRequest, OllamaEmbedOneRequest, OllamaEmbedRequest, OllamaGenerateRequest, ShowRequest
from frontend.schemas.responses import ResponsesRequest
from frontend.schemas.tokenize import DetokenizeRequest, TokenizeRequest

SSE, NDJSON, TEXT, BYTES = "text/event-stream", "application/x-ndjson", "text/plain", "application/octet-stream"
_REF = "#/components/schemas/{name}"
_ERRORS = {
    Dialect.OPENAI: answers.OpenAIError,
    Dialect.ANTHROPIC: answers.AnthropicError,
    Dialect.OLLAMA: answers.OllamaError,
}


@dataclass(frozen=True)
class Operation:
    """One method of a path. answer: None for what is no JSON. stream, raw: how the answer also may come, in parts or as bytes. query: name
    to JSON schema."""

    summary: str
    answer: Any = None
    body: type[msgspec.Struct] | None = None
    stream: str = ""
    raw: str = ""
    kind: str = "application/json"
    form: dict[str, Any] | None = None
    query: dict[str, Any] = field(default_factory=dict)
    anthropic: Any = None  # the answer to a request with an anthropic-version header


def _page(most: int, **more: Any) -> dict[str, Any]:
    return {"limit": {"type": "integer", "minimum": 1, "maximum": most}, "after": {"type": "string"}, **more}


_ORDER = {"order": {"enum": ["asc", "desc"]}}
_UPLOAD = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "contentMediaType": BYTES, "format": "binary"},
        "purpose": {"enum": list(PURPOSES)},
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": {"type": "integer", "minimum": MIN_EXPIRY, "maximum": MAX_EXPIRY},
    },
    "required": ["file", "purpose"],
    "dependentRequired": {
        "expires_after[anchor]": ["expires_after[seconds]"],
        "expires_after[seconds]": ["expires_after[anchor]"],
    },
    "additionalProperties": False,
}

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/completions"): Operation("Continue a text", answers.Completion, CompletionRequest, SSE),
    ("POST", "/v1/chat/completions"): Operation("Answer a conversation", answers.ChatCompletion, ChatRequest, SSE),
    ("POST", "/v1/responses"): Operation("Answer items, and keep the answer", answers.Response, ResponsesRequest, SSE),
    ("GET", "/v1/responses/{response_id}"): Operation(
        "A stored response, or its events again",
        answers.Response,
        stream=SSE,
        query={"stream": {"type": "boolean"}, "starting_after": {"type": "integer", "minimum": 0, "maximum": 999_999_999}},
    ),
    ("DELETE", "/v1/responses/{response_id}"): Operation("Forget a response", answers.Deleted),
    ("POST", "/v1/responses/{response_id}/cancel"): Operation("End a background response", answers.Response),
    ("GET", "/v1/responses/{response_id}/input_items"): Operation("What a response answers", answers.ItemList, query=_page(100, **_ORDER)),
    ("POST", "/v1/messages"): Operation("Anthropic's messages", answers.Message, MessagesRequest, SSE),
    ("POST", "/v1/messages/count_tokens"): Operation("Count a prompt's tokens", answers.TokenCount, MessagesRequest),
    ("POST", "/v1/embeddings"): Operation("Vectors of texts", answers.Embeddings, EmbeddingRequest, raw=BYTES),
    ("GET", "/v1/files"): Operation("List files", answers.FileList, query=_page(10_000, purpose={"enum": [*PURPOSES, OUTPUT]}, **_ORDER)),
    ("POST", "/v1/files"): Operation("Upload a file", answers.File, form=_UPLOAD),
    ("GET", "/v1/files/{file_id}"): Operation("A file", answers.File),
    ("DELETE", "/v1/files/{file_id}"): Operation("Delete a file", answers.Deleted),
    ("GET", "/v1/files/{file_id}/content"): Operation("A file's bytes", kind=BYTES),
    ("GET", "/v1/batches"): Operation("List batches", answers.BatchList, query=_page(100)),
    ("POST", "/v1/batches"): Operation("Run a file of requests", answers.Batch, BatchRequest),
    ("GET", "/v1/batches/{batch_id}"): Operation("A batch", answers.Batch),
    ("POST", "/v1/batches/{batch_id}/cancel"): Operation("End a batch", answers.Batch),
    ("GET", "/v1/models"): Operation("The served model", answers.ModelList, anthropic=answers.AnthropicModelList),
    ("GET", "/v1/models/{model}"): Operation("A model", answers.Model, anthropic=answers.AnthropicModel),
    ("POST", "/api/chat"): Operation("Ollama's chat", answers.OllamaChat, OllamaChatRequest, NDJSON),
    ("POST", "/api/generate"): Operation("Ollama's generate", answers.OllamaGenerate, OllamaGenerateRequest, NDJSON),
    ("POST", "/api/embed"): Operation("Ollama's vectors of texts", answers.OllamaEmbed, OllamaEmbedRequest),
    ("POST", "/api/embeddings"): Operation("The vector of one text", answers.OllamaEmbedOne, OllamaEmbedOneRequest),
    ("GET", "/api/tags"): Operation("The served model, as Ollama lists it", answers.OllamaModels),
    ("GET", "/api/ps"): Operation("Loaded models, as Ollama lists them", answers.OllamaModels),
    ("POST", "/api/show"): Operation("The model's template and size", answers.OllamaModel, ShowRequest),
    ("GET", "/api/version"): Operation("The version", answers.Version),
    ("POST", "/tokenize"): Operation("Tokens of a text or a conversation", answers.Tokens, TokenizeRequest),
    ("POST", "/detokenize"): Operation("The text of tokens", answers.Detokenized, DetokenizeRequest),
    ("GET", "/"): Operation("That a server is there", kind=TEXT),
    ("GET", "/health"): Operation("Whether it serves", answers.Health),
    ("GET", "/metrics"): Operation("Metrics for Prometheus", kind=TEXT),
    ("GET", "/version"): Operation("The version", answers.Version),
    ("GET", "/openapi.json"): Operation("This document", dict[str, Any]),
}


def document(routes: Mapping[str, Mapping[str, Any]], version: str, keys: bool) -> bytes:
    """The document for these paths and methods. keys: whether clients need one."""
    described = {(method, path): OPERATIONS[method, path] for path, methods in routes.items() for method in methods}
    shapes: list[Any] = [*_ERRORS.values()]
    for operation in described.values():
        shapes += [shape for shape in (operation.body, operation.answer, operation.anthropic) if shape is not None]
    schemas, components = msgspec.json.schema_components(shapes, ref_template=_REF)
    known = dict(zip(map(_key, shapes), schemas))
    paths: dict[str, Any] = {}
    for (method, path), operation in described.items():
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, operation, known, keys)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "quire", "version": version, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                },
            },
        }
    )


def _key(shape: Any) -> str:
    return repr(shape)


def _operation(method: str, path: str, operation: Operation, known: dict[str, Any], keys: bool) -> dict[str, Any]:
    parameters = [_parameter(name, "path", {"type": "string", "minLength": 1}) for name in _names(path)]
    parameters += [_parameter(name, "query", schema) for name, schema in operation.query.items()]
    if operation.anthropic is not None:
        parameters.append(_parameter("anthropic-version", "header", {"type": "string"}))
    described: dict[str, Any] = {
        "operationId": f"{method.lower()}{path.replace('{', '').replace('}', '').replace('/', '_').replace('.', '_')}",
        "summary": operation.summary,
        "parameters": parameters,
        "responses": _responses(path, operation, known),
        "security": [{"bearer": []}, {"x-api-key": []}] if keys and path not in PUBLIC_PATHS else [],
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": known[_key(operation.body)]}}}
    elif operation.form is not None:
        described["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": operation.form}}}
    return described


def _responses(path: str, operation: Operation, known: dict[str, Any]) -> dict[str, Any]:
    schema = known[_key(operation.answer)] if operation.answer is not None else {"type": "string"}
    if operation.anthropic is not None:
        schema = {"anyOf": [schema, known[_key(operation.anthropic)]]}
    content: dict[str, Any] = {operation.kind: {"schema": schema}}
    if operation.stream:
        content[operation.stream] = {"schema": {"type": "string", "description": "when the request asks for a stream"}}
    if operation.raw:
        content[operation.raw] = {"schema": {"type": "string", "format": "binary", "description": "when the request asks for bytes"}}
    errors = [known[_key(_ERRORS[dialect_of_path(path)])]]
    if operation.anthropic is not None:
        errors.append(known[_key(_ERRORS[Dialect.ANTHROPIC])])
    error: dict[str, Any] = {"schema": errors[0] if len(errors) == 1 else {"anyOf": errors}}
    responses: dict[str, Any] = {"200": {"description": "The answer", "content": content}}
    for status, words in (("4XX", "The request cannot be served as it is"), ("5XX", "It failed here, or took too long")):
        responses[status] = {"description": words, "content": {"application/json": error}}
    if path == "/health":  # says what is wrong in the same shape
        responses["503"] = {"description": "It does not serve now", "content": content}
    return responses


def _parameter(name: str, place: Literal["path", "query", "header"], schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _names(path: str) -> list[str]:
    return [part[1:-1] for part in path.split("/") if part.startswith("{")]

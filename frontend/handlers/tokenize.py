"""POST /tokenize and /detokenize."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

from frontend.body import decoder, read_json
from frontend.generation import json_answer
from frontend.schemas.tokenize import DetokenizeRequest, TokenizeRequest
from ipc.errors import InvalidRequestError

if TYPE_CHECKING:
    from frontend.app import App

_TOKENIZE = decoder(TokenizeRequest)
_DETOKENIZE = decoder(DetokenizeRequest)


async def tokenize(app: App, request: web.BaseRequest) -> web.Response:
    body = await read_json(request, _TOKENIZE, app.server_config.max_body_bytes)
    app.check_model(body.model)
    tokenizer = app.client.tokenizer
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequestError("give either prompt or messages", "prompt")
    if body.prompt is not None:
        ids = await tokenizer.encode_soon(body.prompt, body.add_special_tokens is not False)
    else:
        for place, message in enumerate(body.messages or []):
            message.check(place)
        _, ids = await tokenizer.encode_chat(
            [message.plain() for message in body.messages or []],
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
        )
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": app.spec.model.max_model_len, "tokens": ids}
    answer["token_strs"] = [tokenizer.token_text(token) for token in ids] if body.return_token_strs else None
    return json_answer(answer)


async def detokenize(app: App, request: web.BaseRequest) -> web.Response:
    body = await read_json(request, _DETOKENIZE, app.server_config.max_body_bytes)
    app.check_model(body.model)
    size = app.spec.model.vocab_size
    for token in body.tokens:
        if not 0 <= token < size:
            raise InvalidRequestError(f"tokens has {token}; this model's token ids go from 0 to {size - 1}", "tokens")
    return json_answer({"prompt": app.client.tokenizer.decode(body.tokens, skip_special_tokens=False)})

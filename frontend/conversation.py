"""From messages to prepared work: what every API that chats does before it generates.

`ChatRequest` is the common tongue: the other APIs' requests are turned into one, so that a field's checks and meaning exist once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from frontend.engine_client import EngineClient
from frontend.field_names import renamed
from frontend.schemas.chat import ChatRequest
from frontend.schemas.numbers import integer
from frontend.stream import Work
from frontend.tools import Tools
from ipc.errors import InvalidRequestError
from ipc.grammar import StructuredOutputsParams
from ipc.sampling_params import SamplingParams

if TYPE_CHECKING:
    from frontend.app import App


async def prepare_chat(app: App, body: ChatRequest, request_id: str, arrival_ns: int, before: Sequence[int] = ()) -> list[Work]:
    """Check everything, render the messages, tokenize; one Work for each of n completions. Nothing is submitted yet.

    Raises InvalidRequestError, HttpError 404 for another model's name, and admission's errors.
    """
    params = check_chat(app, body)
    tools = body.read_tools()
    app.check_count(params.n)
    return await prepare(app.client, body, params, tools, request_id, arrival_ns, before)


async def prepare(
    client: EngineClient,
    body: ChatRequest,
    params: SamplingParams,
    tools: Tools,
    request_id: str | None = None,
    arrival_ns: int = 0,
    before: Sequence[int] = (),
) -> list[Work]:
    """As `prepare_chat`, of a request that is checked. tools: of `body.read_tools()`. What the body says of sampling is not read again.

    before: tokens of a conversation up to and with an answer, which the body's messages go on from.
    """
    text, ids = await render(client, body, tools, resumes=bool(before))
    if before:
        ids = [*before, *ids]
    formats = client.preparer.formats
    continued = body.messages[-1].text() if body.continue_final_message else None
    splitting = formats.splitting(tools, text, continued, body.include_reasoning is not False)
    constraint = formats.answer_or_calls(tools, splitting, params.structured_outputs)
    if constraint is not None:
        params = msgspec.structs.replace(params, structured_outputs=constraint)
    else:
        splitting, given = formats.with_constraint(splitting, params.structured_outputs)
        params = _constrained(params, given, formats.constraint(tools, splitting))
    try:
        return await client.preparer.prepare(
            ids,
            params,
            text=text,
            request_id=request_id,
            priority=integer("priority", body.priority) or 0,
            cache_salt=body.cache_salt or "",
            arrival_ns=arrival_ns,
            timeout=body.timeout,
            splitting=splitting,
            truncation=body.truncation(),
            opened=splitting.opened if splitting is not None and splitting.reasoning is not None else None,
        )
    except InvalidRequestError as error:
        # What is wrong with the prompt is wrong with what it was made of.
        raise error if error.param != "prompt" else InvalidRequestError(error.message, "messages", error.code) from None


def echoed(body: ChatRequest) -> str:
    """With `echo`, the text that answers begin with: the last message's, if it is of the role that the answer has."""
    goes_on = body.messages[-1].role == "assistant" or body.add_generation_prompt is False
    return body.messages[-1].text() if body.echo and goes_on else ""


def check_chat(app: App, body: ChatRequest) -> SamplingParams:
    """The request's parameters for the engine, with everything about it checked that needs no tokens."""
    app.check_model(body.model)
    body.check(app.spec.config.scheduler.scheduling_policy)
    body.check_chat()
    top = integer("top_logprobs", body.top_logprobs) or 0
    max_tokens = integer("max_completion_tokens", body.max_completion_tokens)
    if max_tokens is None:
        max_tokens = integer("max_tokens", body.max_tokens)
    params = body.sampling_params(app.spec.model, top if body.logprobs else None, max_tokens)
    names = {"logprobs": "top_logprobs", **({} if body.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"})}
    try:
        return params.validate(app.spec.model.vocab_size, app.spec.config.model.max_logprobs)
    except InvalidRequestError as error:
        raise renamed(error, names) from None


def _constrained(params: SamplingParams, given: StructuredOutputsParams | None, calls: StructuredOutputsParams | None) -> SamplingParams:
    """The parameters with the grammar of tool calls, or with the request's own. Raises InvalidRequestError if there are both."""
    if given is not None and calls is not None:
        raise InvalidRequestError("tools whose calls must be valid cannot be combined with another constraint of the output", "tools")
    return params if given is None and calls is None else msgspec.structs.replace(params, structured_outputs=given or calls)


async def render(client: EngineClient, body: ChatRequest, tools: Tools, resumes: bool = False) -> tuple[str, list[int]]:
    """The prompt and its ids. tools: of `body.read_tools()`. resumes: see Tokenizer.encode_messages."""
    return await client.tokenizer.encode_chat(
        [message.plain() for message in body.messages],
        add_generation_prompt=body.add_generation_prompt if body.add_generation_prompt is not None else not body.continue_final_message,
        continue_final_message=bool(body.continue_final_message),
        tools=tools.listed,
        documents=body.documents,
        add_special_tokens=bool(body.add_special_tokens),
        resumes=resumes,
        **template_variables(body),
    )


def template_variables(body: ChatRequest) -> dict[str, Any]:
    """What clients may pass on to the template."""
    given = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        given.setdefault("reasoning_effort", body.reasoning_effort)
        # Templates that know on and off only call it one of these.
        for name in ("enable_thinking", "thinking"):
            given.setdefault(name, body.reasoning_effort != "none")
    return given

"""A chat from Python as the request that it would be over HTTP, so that its fields, their checks and their meaning exist once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import msgspec

from frontend import completing, conversation
from frontend.body import misshapen
from frontend.engine_client import EngineClient
from frontend.output_split import Message as Answer
from frontend.outputs import RequestOutput
from frontend.schemas.chat import ChatRequest
from frontend.schemas.structured import structured_outputs
from frontend.stream import Work
from ipc.errors import InvalidRequestError
from ipc.sampling_params import SamplingParams
from quire.prompts import Message


class ChatOptions(TypedDict, total=False):
    """What a chat may say besides its messages and sampling parameters: fields of /v1/chat/completions, by the same names.

    tools, tool_choice, parallel_tool_calls: as docs/tool_calling.md has them. reasoning_effort, include_reasoning: whether and how long to
    think, and whether to show it. response_format: what the answer must look like; or say it by SamplingParams.structured_outputs.
    documents, chat_template_kwargs: for the template. add_generation_prompt: unless continue_final_message, which goes on from the last
    message. add_special_tokens: those that the tokenizer puts around a text. truncate_prompt_tokens, truncation_side: keep so many of the
    prompt's tokens. timeout: seconds until the request fails. priority: lower goes first, with scheduling_policy 'priority'. cache_salt:
    cached prompts are shared among requests of the same salt.
    """

    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    reasoning_effort: str | None
    include_reasoning: bool | None
    response_format: Mapping[str, Any] | None
    documents: Sequence[Mapping[str, Any]] | None
    chat_template_kwargs: Mapping[str, Any] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    add_special_tokens: bool | None
    truncate_prompt_tokens: int | None
    truncation_side: str | None
    timeout: float | None
    priority: int
    cache_salt: str


def request(messages: Sequence[Message], options: ChatOptions) -> ChatRequest:
    """Raises TypeError for a name that is no option, InvalidRequestError for messages and options that would be refused over HTTP."""
    if unknown := sorted(set(options) - ChatOptions.__annotations__.keys()):
        raise TypeError(f"chat() got an unexpected keyword argument {unknown[0]!r}")
    try:
        body = msgspec.convert({**options, "messages": [_plain(message) for message in messages]}, ChatRequest)
    except msgspec.ValidationError as error:
        raise misshapen(error) from None
    body.check_chat()
    return body


def _plain(message: Message) -> Any:
    return dict(message) if isinstance(message, Mapping) else message


async def prepare(client: EngineClient, body: ChatRequest, params: SamplingParams, request_id: str | None = None) -> list[Work]:
    """One Work for each of n answers. Raises InvalidRequestError."""
    asked = structured_outputs(body)
    if asked is not None:
        if params.structured_outputs is not None:
            raise InvalidRequestError(
                "the output can follow one constraint only; there are response_format and structured_outputs", asked.blame
            )
        params = msgspec.structs.replace(params, structured_outputs=asked)
    works = await conversation.prepare(client, body, params, body.read_tools(), request_id)
    # Without text there is nothing to take apart.
    return works if params.detokenize else [msgspec.structs.replace(work, splitting=None) for work in works]


async def answer(client: EngineClient, body: ChatRequest, params: SamplingParams) -> RequestOutput:
    """The whole answer. Raises as EngineClient does."""
    [output] = await completing.run(client, [await prepare(client, body, params)])
    for each in output.outputs:
        if each.message is not None and body.include_reasoning is False:
            each.message.reasoning = None
    return with_messages(output)


def with_messages(output: RequestOutput) -> RequestOutput:
    """Every answer of a chat is a message, also where there is nothing to take apart."""
    for each in output.outputs:
        if each.message is None:
            each.message = Answer(content=each.text)
    return output

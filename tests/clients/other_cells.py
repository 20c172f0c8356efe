"""The clients of Anthropic and Ollama, and the libraries that people put on top of OpenAI's."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import instructor
import langchain_openai
import litellm
import ollama
import openai
import pytest

from tests.clients.cells import (
    ADD,
    ASK,
    CALCULATOR,
    LONG,
    MODEL,
    QUESTION,
    SETTINGS,
    TASK,
    TEXTS,
    TOOL,
    USER,
    Item,
    Target,
    cell,
    check_arguments,
    check_vectors,
)
from tests.clients.openai_cells import CHAT, COMPLETIONS, RESPONSES, TEXT, client, expected_chat, expected_response, expected_vectors

MESSAGES = "/v1/messages"


# anthropic


def claude(target: Target) -> anthropic.Anthropic:
    made: anthropic.Anthropic = target.client(anthropic.Anthropic, base_url=target.url, api_key="none", max_retries=0)
    return made


@cell("anthropic", MESSAGES, "answer")
def message(target: Target) -> None:
    api = claude(target)
    answer = api.messages.create(model=MODEL, messages=USER, max_tokens=24, extra_body={"temperature": 0})
    assert "".join(block.text for block in answer.content if block.type == "text") == expected_chat(target)
    assert answer.usage.output_tokens > 0


@cell("anthropic", MESSAGES, "stream")
def message_stream(target: Target) -> None:
    api = claude(target)
    with api.messages.stream(model=MODEL, messages=USER, max_tokens=24, extra_body={"temperature": 0}) as stream:
        assert "".join(stream.text_stream) == expected_chat(target)
        assert stream.get_final_message().stop_reason in ("end_turn", "max_tokens")


@cell("anthropic", MESSAGES, "tools")
def message_tools(target: Target) -> None:
    tool: Any = {"name": "add", "description": ADD["description"], "input_schema": ADD["parameters"]}
    api = claude(target)
    more: Any = {"tools": [tool], "tool_choice": {"type": "tool", "name": "add"}, "extra_body": {"temperature": 0}}
    answer = api.messages.create(model=MODEL, messages=ASK, max_tokens=100, **more)
    [call] = [block for block in answer.content if block.type == "tool_use"]
    assert answer.stop_reason == "tool_use" and call.name == "add"
    check_arguments(dict(call.input))


@cell("anthropic", MESSAGES, "streamed tools")
def message_stream_tools(target: Target) -> None:
    tool: Any = {"name": "add", "description": ADD["description"], "input_schema": ADD["parameters"]}
    more: Any = {"tools": [tool], "tool_choice": {"type": "tool", "name": "add"}, "extra_body": {"temperature": 0}}
    with claude(target).messages.stream(model=MODEL, messages=ASK, max_tokens=100, **more) as stream:
        answer = stream.get_final_message()
    [call] = [block for block in answer.content if block.type == "tool_use"]
    check_arguments(dict(call.input))


@cell("anthropic", MESSAGES, "structured output")
def message_format(target: Target) -> None:
    api = claude(target)
    wanted = {"format": {"type": "json_schema", "schema": Item.model_json_schema() | {"additionalProperties": False}}}
    answer = api.messages.create(model=MODEL, messages=USER, max_tokens=60, extra_body={"output_config": wanted})
    Item.model_validate_json("".join(block.text for block in answer.content if block.type == "text")).check()


@cell("anthropic", MESSAGES, "errors")
def message_errors(target: Target) -> None:
    api = claude(target)
    for kind, change in ((anthropic.BadRequestError, {"max_tokens": 0}), (anthropic.NotFoundError, {"model": "other"})):
        with pytest.raises(kind) as caught:
            api.messages.create(**{"model": MODEL, "messages": USER, "max_tokens": 5, **change})
        assert isinstance(caught.value.body, dict) and caught.value.body["type"] == "error"


@cell("anthropic", "/v1/messages/count_tokens", "answer")
def count(target: Target) -> None:
    api = claude(target)
    counted = api.messages.count_tokens(model=MODEL, messages=USER).input_tokens
    assert counted == target.plain(CHAT, {"model": MODEL, "messages": USER, **SETTINGS})["usage"]["prompt_tokens"]


@cell("anthropic", "/v1/models", "list")
def claude_models(target: Target) -> None:
    api = claude(target)
    assert [each.id for each in api.models.list()] == [MODEL] and api.models.retrieve(MODEL).display_name == MODEL


# ollama


def llama(target: Target) -> ollama.Client:
    made: ollama.Client = target.client(ollama.Client, host=target.url)
    return made


OPTIONS = {"num_predict": 24, "temperature": 0}


@cell("ollama", "/api/chat", "answer")
def ollama_chat(target: Target) -> None:
    answer = llama(target).chat(MODEL, USER, options=OPTIONS)
    assert answer.message.content == expected_chat(target) and answer.done and answer.eval_count


@cell("ollama", "/api/chat", "stream")
def ollama_stream(target: Target) -> None:
    pieces = list(llama(target).chat(MODEL, USER, options=OPTIONS, stream=True))
    assert "".join(each.message.content or "" for each in pieces) == expected_chat(target) and len(pieces) > 1 and pieces[-1].done


@cell("ollama", "/api/chat", "tools")
def ollama_tools(target: Target) -> None:
    """The API has no way to demand a call; the demo model calls this tool by itself."""
    said = [{"role": "user", "content": "What is 5 + 7?"}]
    answer = llama(target).chat(MODEL, said, tools=[CALCULATOR], options={"num_predict": 100, "temperature": 0})
    assert [call.function.name for call in answer.message.tool_calls or []] == ["calculator"]
    assert "5" in answer.message.tool_calls[0].function.arguments["expression"]


@cell("ollama", "/api/chat", "streamed tools")
def ollama_stream_tools(target: Target) -> None:
    said = [{"role": "user", "content": "What is 5 + 7?"}]
    pieces = list(llama(target).chat(MODEL, said, tools=[CALCULATOR], options={"num_predict": 100, "temperature": 0}, stream=True))
    [call] = [call for piece in pieces for call in piece.message.tool_calls or []]
    assert call.function.name == "calculator" and "5" in call.function.arguments["expression"]


@cell("ollama", "/api/chat", "structured output")
def ollama_format(target: Target) -> None:
    answer = llama(target).chat(MODEL, USER, format=Item.model_json_schema(), options={"num_predict": 60})
    Item.model_validate_json(answer.message.content or "").check()


@cell("ollama", "/api/chat", "errors")
def ollama_errors(target: Target) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        llama(target).chat("other", USER)
    assert caught.value.status_code == 404 and "other" in caught.value.error


@cell("ollama", "/api/generate", "answer")
def ollama_generate(target: Target) -> None:
    answer = llama(target).generate(MODEL, TEXT["prompt"], raw=True, options=OPTIONS)
    assert answer.response == target.plain(COMPLETIONS, TEXT)["choices"][0]["text"]


@cell("ollama", "/api/generate", "stream")
def ollama_generate_stream(target: Target) -> None:
    pieces = list(llama(target).generate(MODEL, TEXT["prompt"], raw=True, options=OPTIONS, stream=True))
    assert "".join(each.response or "" for each in pieces) == target.plain(COMPLETIONS, TEXT)["choices"][0]["text"] and pieces[-1].done


@cell("ollama", "/api/generate", "context")
def ollama_context(target: Target) -> None:
    """The next turn by `context` is the next turn by messages."""
    api = llama(target)
    first = api.generate(MODEL, QUESTION, options=OPTIONS | {"num_predict": 100})
    assert first.response == api.chat(MODEL, USER, options=OPTIONS | {"num_predict": 100}).message.content and first.done_reason == "stop"
    second = api.generate(MODEL, "Again.", context=first.context, options=OPTIONS)
    talk = [*USER, {"role": "assistant", "content": first.response}, {"role": "user", "content": "Again."}]
    assert second.response == api.chat(MODEL, talk, options=OPTIONS).message.content


@cell("ollama", "/api/generate", "errors")
def ollama_generate_errors(target: Target) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        llama(target).generate(MODEL, QUESTION, context=[10**6])
    assert caught.value.status_code == 400 and "context" in caught.value.error


@cell("ollama", "/api/embed", "answer")
def ollama_embed(target: Target) -> None:
    check_vectors(llama(target).embed(MODEL, TEXTS).embeddings, expected_vectors(target))


@cell("ollama", "/api/tags", "list")
def ollama_list(target: Target) -> None:
    assert [each.model for each in llama(target).list().models] == [MODEL]


@cell("ollama", "/api/show", "answer")
def ollama_show(target: Target) -> None:
    assert "completion" in (llama(target).show(MODEL).capabilities or [])


# langchain-openai


def chain(target: Target, **more: Any) -> langchain_openai.ChatOpenAI:
    made: langchain_openai.ChatOpenAI = target.client(
        langchain_openai.ChatOpenAI, base_url=target.v1, api_key="none", model=MODEL, max_retries=0, **more
    )
    return made


@cell("langchain-openai", CHAT, "answer")
def chain_answer(target: Target) -> None:
    answer = chain(target, **SETTINGS).invoke(QUESTION)
    assert answer.content == expected_chat(target) and answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] > 0


@cell("langchain-openai", CHAT, "stream")
def chain_stream(target: Target) -> None:
    pieces = [chunk.content for chunk in chain(target, **SETTINGS).stream(QUESTION)]
    assert "".join(map(str, pieces)) == expected_chat(target) and len(pieces) > 1


@cell("langchain-openai", CHAT, "tools")
def chain_tools(target: Target) -> None:
    [call, *_] = chain(target, **LONG).bind_tools([TOOL], tool_choice="any").invoke(TASK).tool_calls
    assert call["name"] == "add"
    check_arguments(call["args"])


@cell("langchain-openai", CHAT, "streamed tools")
def chain_stream_tools(target: Target) -> None:
    whole: Any = None
    for piece in chain(target, **LONG).bind_tools([TOOL], tool_choice="any", parallel_tool_calls=False).stream(TASK):
        whole = piece if whole is None else whole + piece
    [call] = whole.tool_calls
    check_arguments(call["args"])


@cell("langchain-openai", RESPONSES, "answer")
def chain_response(target: Target) -> None:
    answer = chain(target, use_responses_api=True, **SETTINGS).invoke(QUESTION)
    assert answer.text == expected_response(target) and answer.usage_metadata is not None


@cell("langchain-openai", RESPONSES, "stream")
def chain_response_stream(target: Target) -> None:
    pieces = [chunk.text for chunk in chain(target, use_responses_api=True, **SETTINGS).stream(QUESTION)]
    assert "".join(map(str, pieces)) == expected_response(target) and len(pieces) > 1


@cell("langchain-openai", COMPLETIONS, "answer")
def chain_text(target: Target) -> None:
    made = target.client(langchain_openai.OpenAI, base_url=target.v1, api_key="none", model=MODEL, max_retries=0, **SETTINGS)
    assert made.invoke(TEXT["prompt"]) == target.plain(COMPLETIONS, TEXT)["choices"][0]["text"]


@cell("langchain-openai", CHAT, "structured output")
def chain_structured(target: Target) -> None:
    found = chain(target, max_tokens=60).with_structured_output(Item).invoke(QUESTION)
    assert isinstance(found, Item)
    found.check()


@cell("langchain-openai", CHAT, "errors")
def chain_errors(target: Target) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chain(target, temperature=9).invoke(QUESTION)
    assert caught.value.param == "temperature"


@cell("langchain-openai", "/v1/embeddings", "answer")
def chain_embeddings(target: Target) -> None:
    # It would cut texts into tokens of OpenAI's by itself.
    made = target.client(
        langchain_openai.OpenAIEmbeddings, base_url=target.v1, api_key="none", model=MODEL, check_embedding_ctx_length=False
    )
    check_vectors(made.embed_documents(TEXTS), expected_vectors(target))


# litellm


def lite(target: Target, **more: Any) -> Any:
    given = {"messages": USER, **more}
    return litellm.completion(model=f"hosted_vllm/{MODEL}", api_base=target.v1, num_retries=0, **given)


@cell("litellm", CHAT, "answer")
def lite_answer(target: Target) -> None:
    answer = lite(target, **SETTINGS)
    assert answer.choices[0].message.content == expected_chat(target) and answer.usage.completion_tokens > 0


@cell("litellm", CHAT, "stream")
def lite_stream(target: Target) -> None:
    pieces = [chunk.choices[0].delta.content or "" for chunk in lite(target, stream=True, **SETTINGS)]
    assert "".join(pieces) == expected_chat(target)


@cell("litellm", CHAT, "tools")
def lite_tools(target: Target) -> None:
    """It strips `strict` and `additionalProperties`; the arguments must keep to the schema all the same."""
    answer = lite(target, messages=ASK, tools=[TOOL], tool_choice="required", **LONG)
    arguments = json.loads(answer.choices[0].message.tool_calls[0].function.arguments)
    assert {"a", "b"} <= set(arguments)
    check_arguments({name: arguments[name] for name in ("a", "b")})


@cell("litellm", CHAT, "structured output")
def lite_structured(target: Target) -> None:
    Item.model_validate_json(lite(target, response_format=Item, max_tokens=60).choices[0].message.content).check()


@cell("litellm", CHAT, "errors")
def lite_errors(target: Target) -> None:
    with pytest.raises(litellm.BadRequestError) as caught:
        lite(target, temperature=9)
    assert caught.value.status_code == 400 and "temperature" in str(caught.value)


@cell("litellm", CHAT, "streamed tools")
def lite_stream_tools(target: Target) -> None:
    pieces = list(lite(target, messages=ASK, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, stream=True, **LONG))
    [call] = litellm.stream_chunk_builder(pieces).choices[0].message.tool_calls
    arguments = json.loads(call.function.arguments)
    check_arguments({name: arguments[name] for name in ("a", "b")})


@cell("litellm", COMPLETIONS, "answer")
def lite_text(target: Target) -> None:
    made = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}", api_base=target.v1, api_key="none", prompt=TEXT["prompt"], num_retries=0, **SETTINGS
    )
    assert made.choices[0].text == target.plain(COMPLETIONS, TEXT)["choices"][0]["text"]


def lite_responses(target: Target, **more: Any) -> Any:
    given = {"input": QUESTION, "max_output_tokens": 24, "temperature": 0, **more}
    return litellm.responses(model=f"openai/{MODEL}", api_base=target.v1, api_key="none", num_retries=0, **given)


@cell("litellm", RESPONSES, "answer")
def lite_response(target: Target) -> None:
    answer = lite_responses(target)
    said = "".join(part.text for item in answer.output if item.type == "message" for part in item.content)
    assert said == expected_response(target) and answer.usage.output_tokens > 0


@cell("litellm", RESPONSES, "stream")
def lite_response_stream(target: Target) -> None:
    """It asks for the whole answer and cuts it itself, for models that it does not know."""
    pieces = [event.delta for event in lite_responses(target, stream=True) if event.type == "response.output_text.delta"]
    assert "".join(pieces) == expected_response(target)


@cell("litellm", RESPONSES, "tools")
def lite_response_tools(target: Target) -> None:
    tools = [{"type": "function", "strict": True, **ADD}]
    answer = lite_responses(target, input=TASK, tools=tools, tool_choice="required", max_output_tokens=100)
    [call, *_] = [item for item in answer.output if item.type == "function_call"]
    check_arguments(json.loads(call.arguments))


@cell("litellm", RESPONSES, "errors")
def lite_response_errors(target: Target) -> None:
    with pytest.raises(litellm.BadRequestError) as caught:
        lite_responses(target, temperature=9)
    assert caught.value.status_code == 400 and "temperature" in str(caught.value)


@cell("litellm", "/v1/embeddings", "answer")
def lite_embeddings(target: Target) -> None:
    found = litellm.embedding(model=f"hosted_vllm/{MODEL}", api_base=target.v1, input=TEXTS)
    check_vectors([each["embedding"] for each in found.data], expected_vectors(target))


@cell("litellm", MESSAGES, "answer")
def lite_claude(target: Target) -> None:
    answer = litellm.completion(model=f"anthropic/{MODEL}", api_base=target.url, api_key="none", messages=USER, num_retries=0, **SETTINGS)
    assert answer.choices[0].message.content == expected_chat(target)


@cell("litellm", MESSAGES, "stream")
def lite_claude_stream(target: Target) -> None:
    model, more = f"anthropic/{MODEL}", {"num_retries": 0, "stream": True, **SETTINGS}
    pieces = litellm.completion(model=model, api_base=target.url, api_key="none", messages=USER, **more)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected_chat(target)


@cell("litellm", "/api/chat", "stream")
def lite_ollama_stream(target: Target) -> None:
    pieces = litellm.completion(model=f"ollama_chat/{MODEL}", api_base=target.url, messages=USER, num_retries=0, stream=True, **SETTINGS)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected_chat(target)


@cell("litellm", "/api/chat", "answer")
def lite_ollama(target: Target) -> None:
    answer = litellm.completion(model=f"ollama_chat/{MODEL}", api_base=target.url, messages=USER, num_retries=0, **SETTINGS)
    assert answer.choices[0].message.content == expected_chat(target)


# instructor


@cell("instructor", CHAT, "structured output")
def instructor_schema(target: Target) -> None:
    api = client(target)
    patched = instructor.from_openai(api, mode=instructor.Mode.JSON_SCHEMA)
    patched.chat.completions.create(model=MODEL, messages=USER, response_model=Item, max_tokens=60, max_retries=0).check()


@cell("instructor", CHAT, "tools")
def instructor_tools(target: Target) -> None:
    api = client(target)
    patched = instructor.from_openai(api, mode=instructor.Mode.TOOLS)
    patched.chat.completions.create(model=MODEL, messages=ASK, response_model=Item, max_retries=0, **LONG).check()

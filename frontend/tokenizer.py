"""The model's tokenizer: text to ids, ids to text, messages to a prompt."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer as Backend

from frontend.chat_template import ChatTemplate, Renderer
from frontend.detokenizer import ByteDetokenizer, Detokenizer, SkippingDetokenizer, TokenBytes, TokenJson, WindowDetokenizer, is_byte_level
from ipc.errors import ConfigError, InvalidRequestError

INLINE_CHARS = 4_000  # below this, encoding takes less than handing it to a thread and back
MAX_ENCODE_SECONDS = 60.0
Message = Mapping[str, Any]


class Tokenizer:
    """Wraps a tokenizers.Tokenizer with the names and the chat template from tokenizer_config.json.

    Attributes: vocab_size (ids are below it), eos_token, bos_token, pad_token, unk_token (text or None), special_ids, has_chat_template.
    """

    def __init__(self, backend: Backend, config: Mapping[str, Any], template: str | None) -> None:
        """config: the content of tokenizer_config.json. template: Jinja source, or None for a model without one."""
        self.backend = backend
        backend.no_padding()
        backend.no_truncation()
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token for token, what in added.items() if what.special)
        self.names = {name: _content(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        self.bos_token, self.eos_token = self.names["bos_token"], self.names["eos_token"]
        self.pad_token, self.unk_token = self.names["pad_token"], self.names["unk_token"]
        self.response_template = config.get("response_template")  # how answers are to be read (frontend/response_template.py)
        self._template = ChatTemplate(template) if template else None
        self._byte_level = is_byte_level(backend)
        self._bytes = {skip: TokenBytes(backend, self.special_ids, skip) for skip in (False, True)}
        self._keeping: dict[frozenset[int], TokenBytes] = {}
        self.json_tables = {skip: TokenJson(table) for skip, table in self._bytes.items()} if self._byte_level else {}
        specials = sorted((added[token].content for token in self.special_ids), key=len, reverse=True)
        self._specials = re.compile("|".join(map(re.escape, specials))) if specials else None
        self._plain: Backend | None = None
        self._renderer = Renderer()

    @classmethod
    def load(cls, path: str, chat_template: str = "") -> Tokenizer:
        """Read the tokenizer of a model directory; `chat_template` names a file that replaces the model's template.

        Raises ConfigError naming the file that is missing or makes no sense.
        """
        config = _json_file(os.path.join(path, "tokenizer_config.json"))
        file = os.path.join(path, "tokenizer.json")
        if os.path.exists(file):
            try:
                backend = Backend.from_file(file)
            except Exception as error:  # the library raises bare Exception
                raise ConfigError(f"cannot read {file}: {error}") from None
        else:
            from frontend import fallback_tokenizer

            backend = fallback_tokenizer.load(path)
        return cls(backend, config, _template_source(path, config, chat_template))

    @property
    def template_source(self) -> str:
        """The chat template's text, empty if there is none."""
        return self._template.source if self._template is not None else ""

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of `text`; the names of special tokens in it become those tokens."""
        try:
            return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except (UnicodeEncodeError, TypeError):
            raise InvalidRequestError("the text has characters that are not Unicode (lone surrogates)") from None

    def frame(self) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer puts before and after a text."""
        inner, whole = self.encode("a", add_special_tokens=False), self.encode("a")
        start = next((at for at in range(len(whole)) if whole[at : at + len(inner)] == inner), len(whole))
        return whole[:start], whole[start + len(inner) :]

    async def encode_soon(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """As `encode`; a long text is encoded in a thread."""
        if len(text) <= INLINE_CHARS:
            return self.encode(text, add_special_tokens)
        return await self._renderer.run(lambda: self.encode(text, add_special_tokens), MAX_ENCODE_SECONDS)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def detokenizer(self, skip_special_tokens: bool = True, kept: frozenset[int] = frozenset()) -> Detokenizer:
        """A fresh incremental decoder for one output. kept: special tokens that become text although the others are skipped."""
        if skip_special_tokens and kept:
            skipped = self.special_ids - kept
            if not self._byte_level:
                return SkippingDetokenizer(self.backend, skipped)
            if kept not in self._keeping:
                self._keeping[kept] = TokenBytes(self.backend, skipped, True)
            return ByteDetokenizer(self._keeping[kept])
        if self._byte_level:
            return ByteDetokenizer(self._bytes[skip_special_tokens])
        return WindowDetokenizer(self.backend, skip_special_tokens)

    def added_tokens(self) -> dict[str, int]:
        """Ids of the tokens that were added to the vocabulary, special or not, by their text."""
        return {added.content: token for token, added in self.backend.get_added_tokens_decoder().items()}

    def special_tokens(self) -> dict[int, str]:
        """Every special token's id and text."""
        added = self.backend.get_added_tokens_decoder()
        return {token: added[token].content for token in self.special_ids}

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for, special tokens by their names."""
        if self._byte_level:
            return self._bytes[False][token]
        return self.backend.decode([token], skip_special_tokens=False).encode()

    def token_text(self, token: int) -> str:
        """One token alone, as logprobs show it; bytes that are no whole character become U+FFFD."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt for `messages` by the model's template; kwargs are further template variables.

        Raises InvalidRequestError if there is no template or it refuses. A template may run long: in an event loop use `encode_chat`.
        """
        if self._template is None:
            raise InvalidRequestError(
                "this model has no chat template, so it cannot chat; use /v1/completions, or give the server one with --chat-template",
                "messages",
                "no_chat_template",
            )
        if not messages:
            raise InvalidRequestError("messages must not be empty", "messages")
        if continue_final_message and add_generation_prompt:
            raise InvalidRequestError("continue_final_message needs add_generation_prompt to be false", "continue_final_message")
        ready = [self._template_message(message) for message in messages]
        names = {name: value for name, value in self.names.items() if value is not None}
        marker = ""
        if continue_final_message:
            # The prompt ends where the last message's text ends; a marker finds that place whatever the template puts after it.
            marker = f"\ue000{secrets.token_hex(8)}\ue001"
            ready[-1] = {**ready[-1], "content": _text_of(ready[-1].get("content")) + marker}
        text = self._template.render(
            messages=ready, tools=list(tools) if tools else None, add_generation_prompt=add_generation_prompt, **{**names, **kwargs}
        )
        if marker:
            if marker not in text:
                raise InvalidRequestError("the chat template does not show the last message, so it cannot be continued", "messages")
            text = text[: text.rindex(marker)]
        return text

    def encode_messages(
        self, messages: Sequence[Message], add_special_tokens: bool = False, resumes: bool = False, **kwargs: Any
    ) -> tuple[str, list[int]]:
        """Prompt and ids of a chat. Names of special tokens in messages, tools and documents are encoded as text, so that no user can
        forge a turn. add_special_tokens: put those around it that the tokenizer puts around a text; templates mostly write them themselves.
        resumes: the messages go on from an answer that there are tokens of, so only what the template writes after it is given.

        Messages of the assistant are left as they are: they come from the model, and templates look for its tokens in them.
        """
        quoted: list[str] = []
        nonce = secrets.token_hex(8)

        def quote(match: re.Match[str]) -> str:
            quoted.append(match.group())
            return f"\ue000{nonce}:{len(quoted) - 1}\ue001"

        for name in ("tools", "documents"):
            if kwargs.get(name) and self._specials is not None:
                kwargs[name] = _quoted(kwargs[name], self._specials, quote)
        if not kwargs.get("documents"):
            kwargs.pop("documents", None)  # templates ask whether it is defined
        quoted_messages = [self._quote_message(message, quote) for message in messages]
        if resumes:
            mark = f"\ue000{nonce}\ue001"
            # The question is one that any template shows; it is cut off with the answer.
            before = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
            prompt = self.apply_chat_template([*before, *quoted_messages], **kwargs)
            _, found, prompt = prompt.rpartition(mark)
            if not found:
                raise InvalidRequestError("the chat template does not show the answers so far, so none can be continued", "messages")
        else:
            prompt = self.apply_chat_template(quoted_messages, **kwargs)
        if not quoted:
            return prompt, self.encode(prompt, add_special_tokens)
        start, end = self.frame() if add_special_tokens else ([], [])
        ids: list[int] = [*start]
        parts = re.split(f"\ue000{nonce}:(\\d+)\ue001", prompt)
        for place, part in enumerate(parts):
            ids += self._encode_plain(quoted[int(part)]) if place % 2 else self.encode(part, add_special_tokens=False) if part else []
        return "".join(quoted[int(part)] if place % 2 else part for place, part in enumerate(parts)), ids + end

    async def encode_chat(self, messages: Sequence[Message], **kwargs: Any) -> tuple[str, list[int]]:
        """As `encode_messages`, in a thread and within a bound of time."""
        return await self._renderer.run(lambda: self.encode_messages(messages, **kwargs))

    def close(self) -> None:
        self._renderer.close()

    def _template_message(self, message: Message) -> dict[str, Any]:
        """A message as templates expect it: text instead of parts, unless they walk over parts; arguments of calls as objects."""
        assert self._template is not None
        ready = dict(message)
        if isinstance(ready.get("content"), list) and not self._template.handles_parts:
            ready["content"] = _text_of(ready["content"])
        if ready.get("role") == "developer" and not self._template.knows_developer:
            ready["role"] = "system"
        if ready.get("tool_calls"):
            ready["tool_calls"] = [_with_argument_object(call) for call in ready["tool_calls"]]
        return ready

    def _quote_message(self, message: Message, quote: Callable[[re.Match[str]], str]) -> Message:
        content = message.get("content")
        if self._specials is None or message.get("role") == "assistant" or not content:
            return message
        if isinstance(content, str):
            return {**message, "content": self._specials.sub(quote, content)} if self._specials.search(content) else message
        parts = [
            {**part, "text": self._specials.sub(quote, part["text"])} if isinstance(part.get("text"), str) else part for part in content
        ]
        return {**message, "content": parts}

    def _encode_plain(self, text: str) -> list[int]:
        """Ids of `text` with no special token in them. The second copy of the tokenizer is made when somebody first needs it."""
        if self._plain is None:
            plain = Backend.from_str(self.backend.to_str())
            plain.encode_special_tokens = True
            self._plain = plain
        return list(self._plain.encode(text, add_special_tokens=False).ids)


def _text_of(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str))
    return content or ""


def _quoted(value: Any, specials: re.Pattern[str], quote: Callable[[re.Match[str]], str]) -> Any:
    """A JSON value with `quote` applied to every text in it."""
    if isinstance(value, str):
        return specials.sub(quote, value)
    if isinstance(value, Mapping):
        return {_quoted(key, specials, quote): _quoted(each, specials, quote) for key, each in value.items()}
    return [_quoted(each, specials, quote) for each in value] if isinstance(value, list) else value


def _with_argument_object(call: Any) -> Any:
    """OpenAI sends a call's arguments as JSON text; templates print them as an object."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments", ""), str):
        return call
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except (ValueError, RecursionError):
        raise InvalidRequestError("a tool call's arguments are not valid JSON", "messages") from None
    return {**call, "function": {**function, "arguments": arguments}}


def _content(token: Any) -> str | None:
    """tokenizer_config.json writes a token as its text or as an object around it."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _template_source(path: str, config: Mapping[str, Any], override: str) -> str | None:
    """The flag's file, chat_template.jinja, or tokenizer_config.json's entry (of several, the one named default)."""
    for file in filter(None, (override, os.path.join(path, "chat_template.jinja"))):
        if file == override or os.path.exists(file):
            try:
                with open(file, encoding="utf-8") as handle:
                    return handle.read()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"cannot read the chat template {file}: {error}") from None
    entry = config.get("chat_template")
    if isinstance(entry, list):
        named = {each.get("name"): each.get("template") for each in entry if isinstance(each, Mapping)}
        entry = named.get("default")
    return entry if isinstance(entry, str) and entry else None


def _json_file(file: str) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8") as handle:
            document = json.load(handle)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{file} does not hold a JSON object")
    return document

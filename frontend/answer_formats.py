"""The formats in which the served model writes reasoning and tool calls, and what follows from them for one chat request."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from frontend import response_template, tool_grammar
from frontend.http_errors import not_supported
from frontend.output_split import Splitting, splitting
from frontend.output_split.formats import ReasoningFormat, ToolFormat
from frontend.reasoning_parsers import ALIASES as REASONING_ALIASES
from frontend.reasoning_parsers import REASONING_PARSERS
from frontend.reasoning_parsers import TEMPLATE_SIGNS as REASONING_SIGNS
from frontend.tokenizer import Tokenizer
from frontend.tool_parsers import ALIASES as TOOL_ALIASES
from frontend.tool_parsers import TEMPLATE_SIGNS as TOOL_SIGNS
from frontend.tool_parsers import TOOL_PARSERS
from frontend.tools import Tools
from ipc.config import ServerConfig
from ipc.errors import ConfigError
from ipc.grammar import RESPONSE_FORMAT, StructuredOutputsParams


@dataclass(frozen=True, slots=True)
class AnswerFormats:
    """What holds for every request of one server. None: the model has no such format, or none that is known.

    added: ids of the tokenizer's added tokens by text; special: those that are special. schemas: whose schemas bind calls the model is
    free to make.
    """

    tools: ToolFormat | None
    reasoning: ReasoningFormat | None
    added: Mapping[str, int]
    special: Mapping[int, str]
    schemas: Literal["strict", "always"] = "strict"

    @classmethod
    def of(cls, config: ServerConfig, tokenizer: Tokenizer) -> AnswerFormats:
        """As the flags say. Raises ConfigError for a name that is none."""
        template, own = tokenizer.template_source, response_template.read(tokenizer.response_template)
        tools = _choose(
            "tool_call_parser",
            config.tool_call_parser,
            TOOL_PARSERS,
            TOOL_ALIASES,
            TOOL_SIGNS,
            template,
            own.tools,
            own.why_not.get("tools"),
        )
        reasoning = _choose(
            "reasoning_parser",
            config.reasoning_parser,
            REASONING_PARSERS,
            REASONING_ALIASES,
            REASONING_SIGNS,
            template,
            own.reasoning,
            own.why_not.get("reasoning"),
        )
        return cls(tools, reasoning, tokenizer.added_tokens(), tokenizer.special_tokens(), config.tool_call_schemas)

    def splitting(self, tools: Tools, prompt: str, continued: str | None, show_reasoning: bool) -> Splitting | None:
        """How answers to this prompt are taken apart; None if there is nothing to look for.

        continued: text of the assistant's message that the answer goes on from. Raises InvalidRequestError if tools may be called and
        it is not known how the model would.
        """
        if tools.choice == "auto" and self.tools is None:
            raise not_supported(
                "this model has no tool-call format that is known here, so only tool_choice 'required', a named function and 'none' work; "
                "the server's --tool-call-parser names a format",
                "tools",
            )
        form, reasoning = None, self.reasoning
        if tools.choice == "auto":
            form = self.tools
        elif tools.choice == "required":
            form = tool_grammar.forced_format(self.tools)
            if reasoning is not None and reasoning.channels:
                reasoning = None  # the forced answer has no channels
        if form is None and reasoning is None:
            return None
        opened = splitting.opened_by(prompt, continued, reasoning)
        kept = splitting.special_ids(form, reasoning, self.special)
        return Splitting(form, reasoning, tools.schemas, opened, tools.parallel, kept, show_reasoning)

    def with_constraint(
        self, split: Splitting | None, given: StructuredOutputsParams | None
    ) -> tuple[Splitting | None, StructuredOutputsParams | None]:
        """What to make of a request's own constraint when the prompt ends inside of reasoning.

        A JSON schema is to be kept after the reasoning. Of the other kinds the whole output is the answer, which then does not reason.
        """
        if split is None or given is None or not split.opened or split.reasoning is None:
            return split, given
        text = tool_grammar.after_reasoning(given.to_grammar(), split.reasoning, self.added.get)
        if text is None:
            return dataclasses.replace(split, opened=False), given
        return split, StructuredOutputsParams(grammar=text, blame=given.blame)

    def answer_or_calls(
        self, tools: Tools, split: Splitting | None, given: StructuredOutputsParams | None
    ) -> StructuredOutputsParams | None:
        """The constraint of an answer that may call instead of keeping to `given`, OpenAI's response_format, which is about text only.

        None: it is another constraint, there are no tools, or calls in the model's format cannot be told from text.
        """
        if given is None or given.blame != RESPONSE_FORMAT or split is None or split.tools is None:
            return None
        if tools.choice == "required":
            return self.constraint(tools, split)
        schemas, grammar = self._binding(tools), given.to_grammar()
        text = tool_grammar.answer_or_calls(grammar, split.tools, schemas, tools.parallel, split.reasoning, split.opened, self.added.get)
        return None if text is None else StructuredOutputsParams(grammar=text, blame=given.blame)

    def constraint(self, tools: Tools, split: Splitting | None) -> StructuredOutputsParams | None:
        """The grammar of the answer: whenever a call is forced, and where schemas bind calls that are not."""
        if split is None or split.tools is None:
            return None
        if tools.choice == "required":
            text = tool_grammar.forced(split.tools, tools.schemas, tools.parallel, split.reasoning, split.opened, self.added.get)
            return StructuredOutputsParams(grammar=text, blame="tools")
        if self.schemas == "always" or tools.strict:
            found = tool_grammar.lazy(split.tools, self._binding(tools), tools.parallel, split.reasoning, self.added.get)
            return StructuredOutputsParams(grammar=found, blame="tools") if found is not None else None
        return None

    def _binding(self, tools: Tools) -> Mapping[str, Mapping[str, Any]]:
        """The schemas of calls that the model is free to make: those of strict tools, and any object for others."""
        if self.schemas == "always":
            return tools.schemas
        return {name: schema if name in tools.strict else {} for name, schema in tools.schemas.items()}


def _choose(
    setting: str,
    name: str,
    formats: Mapping[str, Any],
    aliases: Mapping[str, str],
    signs: tuple[tuple[tuple[str, ...], str], ...],
    template: str,
    own: Any,
    why_not: str | None,
) -> Any:
    """own: the format that the tokenizer itself describes; what the chat template shows goes before it, being known better."""
    if name in response_template.NAMES:
        if own is None:
            raise ConfigError(f"{setting}: {why_not}")
        return own
    try:
        return splitting.choose(aliases.get(name, name), formats, signs, template) or (own if name == "auto" else None)
    except KeyError:
        raise ConfigError(_unknown(setting, name, {*formats, *aliases})) from None


def _unknown(setting: str, name: str, known: Iterable[str]) -> str:
    return f"{setting}: there is no format {name!r}; there are auto, none, {response_template.NAMES[0]}, {', '.join(sorted(known))}"

"""How models write what they think before they answer, by the names that users know from other servers."""

from __future__ import annotations

from collections.abc import Mapping

from frontend.output_split.formats import ReasoningFormat

THINK = ReasoningFormat("<think>", "</think>")
# These think between tool calls as well, and may call a tool without closing the thought.
INTERLEAVED = ReasoningFormat("<think>", "</think>", interleaved=True, ends_at_tool_call=True)

REASONING_PARSERS: Mapping[str, ReasoningFormat] = {
    "deepseek_r1": THINK,
    "deepseek_v3": THINK,
    "ernie45": ReasoningFormat("<think>", "</think>", ("<response>", "</response>")),
    "glm45": THINK,
    "glm47": INTERLEAVED,
    "granite": ReasoningFormat("Here is my thought process:", "Here is my response:"),
    "holo2": THINK,
    "hunyuan_a13b": ReasoningFormat("<think>", "</think>", ("<answer>", "</answer>")),
    "kimi": ReasoningFormat("◁think▷", "◁/think▷"),
    "kimi_k2": INTERLEAVED,
    "mimo": THINK,
    "minimax_m2": INTERLEAVED,
    "mistral": ReasoningFormat("[THINK]", "[/THINK]"),
    "nemotron_v3": THINK,
    "olmo3": THINK,
    "openai_gptoss": ReasoningFormat("", "", channels=True),
    "qwen3": THINK,
    "seed_oss": ReasoningFormat("<seed:think>", "</seed:think>"),
    "step3": THINK,
    "step3p5": THINK,
    "cohere_command3": ReasoningFormat("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_RESPONSE|>", "<|END_RESPONSE|>")),
}

# SGLang's names for some of them.
ALIASES: Mapping[str, str] = {
    "deepseek-r1": "deepseek_r1",
    "deepseek-v3": "deepseek_v3",
    "gpt-oss": "openai_gptoss",
    "interns1": "qwen3",
    "minimax": "minimax_m2",
    "nano_v3": "nemotron_v3",
    "nemotron_3": "nemotron_v3",
    "qwen3-thinking": "qwen3",
}

# What the chat template of a model that thinks says, most telling first: all of these texts, then the format's name.
TEMPLATE_SIGNS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("<|channel|>", "<|message|>"), "openai_gptoss"),
    (("[THINK]",), "mistral"),
    (("<seed:think>",), "seed_oss"),
    (("<|START_THINKING|>",), "cohere_command3"),
    (("</think>", "<|tool_calls_section_begin|>"), "kimi_k2"),
    (("</think>", "<minimax:tool_call>"), "minimax_m2"),
    (("</think>", "<answer>"), "hunyuan_a13b"),
    (("</think>",), "deepseek_r1"),
    (("Here is my thought process:",), "granite"),
)

"""The oracle: small random-weight models of each family, and the greedy tokens the Transformers library gives for them.

Weights are drawn wide (initializer_range 0.5, float32), so that the best token leads clearly and rounding cannot reorder the first two.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

DEMO_MODEL = Path(__file__).resolve().parent.parent / "quire" / "demo_model"
VOCAB_SIZE = 4096
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.5,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_FAMILY_SHAPE: dict[str, dict[str, Any]] = {
    "Llama": {"tie_word_embeddings": False},
    "Mistral": {"sliding_window": None},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen3": {"head_dim": 32, "tie_word_embeddings": False},
}


def make_model(directory: Path, family: str = "Llama", seed: int = 0, dtype: str = "float32", **changes: Any) -> str:
    """Write a checkpoint of `family` with random weights and the demo model's tokenizer; its path."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**{**_SHAPE, **_FAMILY_SHAPE[family], **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(getattr(torch, dtype))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero at initialization: a lost bias would not show
            torch.nn.init.normal_(parameter.data, std=0.5)
    model.generation_config = transformers.GenerationConfig(eos_token_id=2)
    model.save_pretrained(directory)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (DEMO_MODEL / file).exists():
            shutil.copy(DEMO_MODEL / file, directory / file)
    return str(directory)


@lru_cache(maxsize=8)
def load(path: str) -> Any:
    """The Transformers library's model of a checkpoint, in the checkpoint's dtype, on the CPU."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()


def logits(path: str, tokens: Sequence[int], fp8_cache: bool = False) -> Any:
    """float32[len(tokens), vocabulary] after each token, computed in float32 from the checkpoint's weights.

    fp8_cache: keys and values are rounded to e4m3 on their way into the cache, and attention reads them from there.
    """
    import copy

    import torch
    import transformers

    class RoundingCache(transformers.DynamicCache):
        def update(self, key_states: Any, value_states: Any, *rest: Any, **named: Any) -> Any:
            stored = (x.clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) for x in (key_states, value_states))
            return super().update(*stored, *rest, **named)

    model = copy.deepcopy(load(path)).float()
    with torch.inference_mode():
        return model(torch.tensor([list(tokens)]), past_key_values=RoundingCache(config=model.config) if fp8_cache else None).logits[0]


def vector(path: str, prompt: Sequence[int], pooling: str = "last") -> Any:
    """float32[hidden]: the last hidden state of the prompt's last token, or the mean over all tokens', as sentence-transformers would
    have it before it normalises."""
    import torch

    with torch.inference_mode():
        states = load(path).model(torch.tensor([list(prompt)])).last_hidden_state[0].float()
    return (states[-1] if pooling == "last" else states.mean(0)).numpy()


def greedy(path: str, prompt: Sequence[int], max_tokens: int, ignore_eos: bool = True) -> list[int]:
    """Output tokens of greedy decoding, the end-of-sequence token included where it ends them."""
    import torch

    model = load(path)
    eos = model.generation_config.eos_token_id
    stops = set() if ignore_eos else set(eos if isinstance(eos, list) else [eos])
    tokens: list[int] = []
    with torch.inference_mode():
        step = model(torch.tensor([list(prompt)]), use_cache=True)
        while True:
            tokens.append(int(step.logits[0, -1].argmax()))
            if len(tokens) == max_tokens or tokens[-1] in stops:
                return tokens
            step = model(torch.tensor([[tokens[-1]]]), past_key_values=step.past_key_values, use_cache=True)


def restored_copy(path: str, directory: Path, name: str) -> str:
    """A copy of the checkpoint with every linear rounded as --quantization `name` rounds it, and back; the path of the copy."""
    import torch
    import transformers

    from gpu_workers.quantization.rounding import BITS, rounded

    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    if model.config.tie_word_embeddings:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    for place, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            bits = BITS["int8" if place == "lm_head" else name]
            module.weight.data = rounded(module.weight.data, bits).restored(module.weight.dtype)
    model.save_pretrained(directory)
    return str(directory)


def loglikelihood(path: str, tokens: Sequence[int]) -> list[float]:
    """Log-probabilities of all tokens but the first, each after those before it."""
    import torch

    with torch.inference_mode():
        logits = load(path)(torch.tensor([list(tokens)])).logits[0, :-1].float()
    wanted = torch.tensor(list(tokens[1:]))
    return torch.log_softmax(logits, -1).gather(1, wanted[:, None])[:, 0].tolist()

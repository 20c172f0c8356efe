"""How fast Llama-3.1-8B in bf16 can be on a machine of given ceilings, for any lengths: what every result here is a percentage of.

A step reads all weights once and each running request's keys and values once, and multiplies each token with all weights:
max(weights / bandwidth, operations / rate) + keys and values / bandwidth. No host time, no gap between kernels.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

Lengths = tuple[int, int]  # tokens of a prompt, tokens of its answer


@dataclass(frozen=True)
class Model:
    """hidden, layers, ...: as in config.json; two bytes per number."""

    hidden: int = 4096
    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    intermediate: int = 14336
    vocab: int = 128256

    @property
    def linear(self) -> int:
        """Weights of the layers, each of which every token is multiplied with."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        """Weights of the output layer, which only tokens that are sampled after need."""
        return self.hidden * self.vocab

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim

    def config(self) -> dict[str, object]:
        """config.json of a Llama of this shape."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu",
            "hidden_size": self.hidden, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim, "intermediate_size": self.intermediate,
            "vocab_size": self.vocab, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8192},
            "tie_word_embeddings": False, "attention_bias": False, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
        }  # fmt: skip


LLAMA_8B = Model()
TINY = Model(hidden=128, layers=2, heads=4, kv_heads=2, head_dim=32, intermediate=256, vocab=4096)


@dataclass(frozen=True)
class Machine:
    """Measured ceilings: bytes read and written per second, bf16 operations per second."""

    bytes_per_s: float
    flop_per_s: float


def step_seconds(machine: Machine, tokens: int, sampled: int, context: int, model: Model = LLAMA_8B) -> float:
    """A step of `tokens` new tokens, `sampled` of which give a token, over `context` cached tokens of all its requests together."""
    operations = 2 * tokens * model.linear + 2 * sampled * model.head
    weights = 2 * (model.linear + model.head)
    return max(weights / machine.bytes_per_s, operations / machine.flop_per_s) + context * model.token_bytes / machine.bytes_per_s


def decode_seconds(machine: Machine, batch: int, context: int, model: Model = LLAMA_8B) -> float:
    """A step in which `batch` requests of `context` tokens each decode."""
    return step_seconds(machine, batch, batch, batch * context, model)


def offline_seconds(machine: Machine, requests: list[Lengths], batch: int = 1024, budget: int = 8192, model: Model = LLAMA_8B) -> float:
    """All requests, there from the start, in steps of at most `batch` requests and `budget` tokens; prompts wait until they fit whole."""
    waiting, running, spent = list(reversed(requests)), [], 0.0
    while waiting or running:
        room, started = budget - len(running), []
        context = sum(length for length, _ in running)
        while waiting and len(running) + len(started) < batch and room >= waiting[-1][0]:
            length, answer = waiting.pop()
            room -= length
            started.append((length, answer))
        new = sum(length for length, _ in started)
        spent += step_seconds(machine, len(running) + new, len(running) + len(started), context, model)
        running = [(length + 1, left - 1) for length, left in running + started if left > 1]
    return spent


def sharegpt_like(count: int = 1000, seed: int = 0, prompt: float = 240, answer: float = 210) -> list[Lengths]:
    """Lengths with the spread of the ShareGPT conversations: log-normal, at most 1,024 and 1,000 tokens.

    The first 1,000 of seed 0 have about 198,000 prompt and 184,000 answer tokens.
    """
    numbers, made = random.Random(seed), []
    while len(made) < count:
        pair = (
            int(numbers.lognormvariate(math.log(prompt) - 1.1**2 / 2, 1.1)),
            int(numbers.lognormvariate(math.log(answer) - 0.95**2 / 2, 0.95)),
        )
        if 4 <= pair[0] <= 1024 and 4 <= pair[1] <= 1000:
            made.append(pair)
    return made

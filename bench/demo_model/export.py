"""Writes a checkpoint as a Hugging Face model: python -m bench.demo_model.export CHECKPOINT FOLDER.

The weights are rounded to bfloat16, and the folder is then loaded by transformers and must give the same logits.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from bench.demo_model import checkpoint, data, kinds, tokenizer
from bench.demo_model.model import Llama, Shape


def config_of(shape: Shape, end: int, turn_end: int) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.norm_eps,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "torch_dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": [turn_end, end],
        "pad_token_id": end,
    }


def weights_of(model: Llama) -> dict[str, Tensor]:
    """The tensors under their Hugging Face names; the tied head is left out."""
    return {f"model.{name}": value.detach().to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}


def write(model: Llama, folder: Path, vocabulary: Tokenizer) -> None:
    """All files of the folder, tokenizer included."""
    tokenizer.write(vocabulary, folder, model.shape.max_positions)
    end, turn_end = (vocabulary.token_to_id(token) for token in (tokenizer.END_OF_TEXT, tokenizer.TURN_END))
    (folder / "config.json").write_text(json.dumps(config_of(model.shape, end, turn_end), indent=1) + "\n")
    # A model this small is sure of what it knows; at temperature 1 its rare doubts would show as wrong digits.
    generation = {"eos_token_id": [turn_end, end], "pad_token_id": end, "do_sample": True, "temperature": 0.2}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")
    save_file(weights_of(model), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone


@torch.no_grad()
def difference(model: Llama, folder: Path, vocabulary: Tokenizer) -> float:
    """The largest difference between our logits and those of transformers, both in float32 from the rounded weights."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rounded = Llama(model.shape)
    rounded.load_state_dict({name: value.bfloat16().float() for name, value in model.state_dict().items()})
    rng = random.Random(7)
    worst = 0.0
    for document in data.encode([kinds.draw(kind, rng, True) for kind in kinds.GRADED], vocabulary):
        ids = torch.tensor([document.ids])
        worst = max(worst, float((rounded.logits(rounded(ids)) - theirs(ids).logits).abs().max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint as a Hugging Face model.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=Path("quire/demo_model/tokenizer.json"))
    options = parser.parse_args()
    model, vocabulary = checkpoint.load_model(options.checkpoint), Tokenizer.from_file(str(options.tokenizer))
    write(model, options.folder, vocabulary)
    worst = difference(model, options.folder, vocabulary)
    print(f"{sum(p.numel() for p in model.parameters())} parameters; largest difference to transformers: {worst:.2e}")
    if worst > 1e-3:
        raise SystemExit("the exported model does not compute what the trained one does")


if __name__ == "__main__":
    main()

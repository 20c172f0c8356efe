"""Random-weight models for benchmarks, made here and never downloaded: `python -m bench.models OUT_DIR [--only tiny]`.

tiny: 2.4 M parameters, float32, Llama, vocabulary 4,096: the engine's own overhead is nearly all of the time.
half: 386.6 M parameters, bfloat16, Qwen2.5-0.5B's shape with a vocabulary of 32,000: memory bandwidth is nearly all of the time.
The tokenizer of tiny is the demo model's; half has one of its size whose tokens are numbered words, since benchmarks send token ids.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

DEMO_MODEL = Path(__file__).resolve().parent.parent / "quire" / "demo_model"
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "family": "Llama", "dtype": "float32", "vocab_size": 4096, "hidden_size": 128, "intermediate_size": 400, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 2048, "tie_word_embeddings": False,
    },
    "half": {
        "family": "Qwen2", "dtype": "bfloat16", "vocab_size": 32000, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768, "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6, "use_sliding_window": False,
    },
}  # fmt: skip


def make(name: str, directory: Path, seed: int = 0) -> int:
    """Write the checkpoint; its number of parameters."""
    import torch
    import transformers

    shape = dict(SHAPES[name])
    family, dtype = shape.pop("family"), getattr(torch, shape.pop("dtype"))
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(bos_token_id=0, eos_token_id=2, pad_token_id=0, **shape)
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(dtype)
    model.generation_config = transformers.GenerationConfig(bos_token_id=0, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(directory)
    if shape["vocab_size"] == 4096:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(DEMO_MODEL / file, directory / file)
    else:
        write_word_tokenizer(directory, shape["vocab_size"])
    return sum(parameter.numel() for parameter in model.parameters())


def write_word_tokenizer(directory: Path, vocab_size: int) -> None:
    """tokenizer.json: a byte-level vocabulary: 256 bytes, then words w0, w1, ... without merges, which only decoding ever meets."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: number for number, piece in enumerate(alphabet)}
    vocab.update({f"Ġw{number}": number for number in range(len(vocab), vocab_size)})
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": alphabet[2]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=list(SHAPES), action="append")
    arguments = parser.parse_args()
    for name in arguments.only or SHAPES:
        directory = arguments.out / name
        directory.mkdir(parents=True, exist_ok=True)
        print(json.dumps({"model": name, "parameters": make(name, directory)}))


if __name__ == "__main__":
    main()

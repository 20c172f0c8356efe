"""Small tokenizers of the kinds there are, trained on a few lines."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LINES = [
    "hello world, the quick brown fox jumps over the lazy dog",
    "naïve café, 你好世界, こんにちは, 😀😃👨‍👩‍👧",
    "for i in range(10):\n    print(i)",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def byte_level() -> Tokenizer:
    """GPT-2's scheme, as most models have it; the last token is an added one with a space, which the scheme has no character for."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=360, special_tokens=SPECIAL, initial_alphabet=alphabet))
    tokenizer.add_tokens([AddedToken("<a b>", normalized=False)])
    return tokenizer


@cache
def byte_fallback() -> Tokenizer:
    """Llama 2's scheme: words joined by U+2581, unknown characters as byte tokens."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["▁hello", "▁world", "▁", "h", "e", "l", "o", "w", "r", "d", "é", "▁the", "▁fox", ",", "."]
    vocabulary = {token: place for place, token in enumerate(["<unk>", "<s>", "</s>", *byte_tokens, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    return tokenizer

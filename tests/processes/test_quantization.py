"""--quantization through the real processes, over two ranks."""

from __future__ import annotations

from pathlib import Path

from quire import LLM, SamplingParams
from tests import oracle

PROMPTS = [list(range(300, 300 + length)) for length in (2, 20, 45)]


def test_tokens_are_those_of_the_restored_weights(tmp_path: Path) -> None:
    # Slices of 32 and 64 inputs: whole groups of int4, so that both ranks round as one alone would.
    model = oracle.make_model(tmp_path / "model")
    restored = oracle.restored_copy(model, tmp_path / "restored", "int4")
    with LLM(model, quantization="int4", dtype="float32", tensor_parallel_size=2) as llm:
        outputs = llm.generate(PROMPTS, SamplingParams(max_tokens=10, temperature=0, ignore_eos=True), use_tqdm=False)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        assert list(output.outputs[0].token_ids) == oracle.greedy(restored, prompt, 10)

"""What a model directory may hold, and the one clear message when it holds something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpu_workers.collectives import Collectives
from gpu_workers.models.registry import family
from gpu_workers.weights.part import Part
from ipc.errors import ConfigError
from tests import oracle
from tests.gpu_workers.player import Player

PROMPT = list(range(300, 320))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(oracle.make_model(tmp_path_factory.mktemp("checkpoint"), "Llama", num_hidden_layers=2))


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def edit_config(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")


def test_sharded(original: Path, copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(weights)
    index = {}
    for number, some in enumerate((names[::3], names[1::3], names[2::3])):
        save_file({name: weights[name] for name in some}, copy / f"part-{number}.safetensors")
        index |= dict.fromkeys(some, f"part-{number}.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    player = Player(str(copy))
    row = player.add(0, PROMPT)
    player.run([row], 5)
    assert row.output == oracle.greedy(str(original), PROMPT, 5)
    (copy / "part-1.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"part-1\.safetensors does not exist"):
        Player(str(copy))


WRONG: list[tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = [
    (lambda w: w.pop("model.layers.1.mlp.up_proj.weight"), r"lacks model\.layers\.1\.mlp\.up_proj\.weight"),
    (lambda w: w.update({"model.layers.0.extra": torch.zeros(2)}), r"holds model\.layers\.0\.extra, for which"),
    (lambda w: w.update({"model.norm.weight": torch.zeros(65)}), r"model\.norm\.weight has shape \[65\], the config asks for \[64\]"),
    (lambda w: w.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}), r"model\.norm\.weight has dtype I8"),
]


@pytest.mark.parametrize("change, message", WRONG)
def test_wrong_tensors(copy: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str) -> None:
    edit_weights(copy, change)
    with pytest.raises(ConfigError, match=message):
        Player(str(copy))


def test_no_file_or_a_damaged_one(copy: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    for damaged in (whole[:1000], b"", b"\xff" * 64, whole[:-4]):
        (copy / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"model\.safetensors is not a readable safetensors file"):
            Player(str(copy))
    (copy / "model.safetensors").rename(copy / "model.pt")
    with pytest.raises(ConfigError, match=r"no \.safetensors weight file; model\.pt is a pickle"):
        Player(str(copy))


@pytest.mark.parametrize("index", ["[]", "{}", "nonsense", '{"weight_map": {"a": "../elsewhere.safetensors"}}', '{"weight_map": {"a": 1}}'])
def test_bad_index(copy: Path, index: str) -> None:
    (copy / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ConfigError, match=r"model\.safetensors\.index\.json"):
        Player(str(copy))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"attn_logit_softcapping": 50.0}, "unknown key 'attn_logit_softcapping'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized checkpoints are not supported"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic' is not supported"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "original_max_position_embeddings is missing"),
        ({"rope_parameters": {"rope_type": "default", "mystery": 1}}, "rope_parameters: unknown key 'mystery'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ({"hidden_size": "64"}, "hidden_size must be a positive integer"),
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"attention_bias": 1}, "attention_bias must be true or false"),
        ({"dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn' is not supported"),
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported; there are LlamaForCausalLM, MistralForCausalLM"),
        ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) is no multiple of num_key_value_heads \(3\)"),
    ],
)  # fmt: skip
def test_config_that_is_not_understood(copy: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(copy, **changes)
    with pytest.raises(ConfigError, match=message):
        Player(str(copy))


@pytest.mark.parametrize(
    "size, what", [(3, r"num_attention_heads \(4\)"), (8, r"num_attention_heads \(4\)"), (5, "tensor_parallel_size 5 does not divide")]
)
def test_dimensions_that_cannot_be_split(original: Path, size: int, what: str) -> None:
    ranks = Collectives()
    ranks.size = size
    with pytest.raises(ConfigError, match=what):
        Player(str(original), ranks=ranks)


def test_ranks_hold_disjoint_slices_that_make_the_whole(original: Path) -> None:
    """KV heads are shared out while there are enough, and repeated when there are more ranks than heads."""
    for size in (2, 4):
        rows: dict[str, list[Part]] = {}
        for rank in range(size):
            ranks = Collectives()
            ranks.rank, ranks.size = rank, size
            for part in Player(str(original), ranks=ranks, load_format="dummy").model.parts():
                rows.setdefault(part.name, []).append(part)
        starts = {name: [part.start for part in parts] for name, parts in rows.items()}
        assert starts["layers.0.q.weight"] == [64 // size * rank for rank in range(size)]
        assert starts["layers.0.k.weight"] == {2: [0, 16], 4: [0, 0, 16, 16]}[size]
        assert starts["layers.1.down.weight"] == [128 // size * rank for rank in range(size)]
        assert {part.dim for part in rows["layers.1.down.weight"]} == {1}
        assert starts["embedding.weight"] == [4096 // size * rank for rank in range(size)]


def test_dummy_weights_are_the_same_each_time(original: Path) -> None:
    outputs = []
    for _ in range(2):
        player = Player(str(original), load_format="dummy")
        row = player.add(0, PROMPT)
        player.run([row], 5)
        outputs.append(row.output)
    assert outputs[0] == outputs[1]


def test_added_families_come_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    entry = metadata.EntryPoint("NewForCausalLM", "gpu_workers.models.families.llama", "quire.models")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry] if group == "quire.models" else [])
    assert family("NewForCausalLM") is family("LlamaForCausalLM")
    with pytest.raises(ConfigError, match="NewForCausalLM"):
        family("OtherForCausalLM")

"""From the model argument to a directory, and the complaints on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ipc import config
from ipc.config import ModelConfig
from ipc.errors import ConfigError
from quire import model_source

CONFIG = {"architectures": ["LlamaForCausalLM"], "vocab_size": 10, "max_position_embeddings": 64, "eos_token_id": 2}


def write(directory: Path, document: Any = CONFIG, weights: str = "model.safetensors") -> Path:
    (directory / "config.json").write_text(json.dumps(document))
    if weights:
        (directory / weights).touch()
    return directory


def load(path: Path | str, **flags: Any) -> Any:
    return model_source.load(config.load({"model": str(path), **flags}, {}))


def test_empty_is_the_bundled_model() -> None:
    info = load("")
    assert info.path == model_source.BUNDLED_PATH
    assert info.name == "quire-demo"
    assert Path(info.path, "tokenizer.json").exists()


def test_a_directory_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write(tmp_path)
    assert load(directory).name == tmp_path.name
    assert load(directory, served_model_name="other").name == "other"
    monkeypatch.chdir(tmp_path.parent)
    assert load(tmp_path.name).path == str(tmp_path)


@pytest.mark.parametrize("model", ["", "."])
def test_only_the_hub_has_revisions(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--revision v1"):
        load(model, revision="v1")


def test_a_directory_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert model_source.find(ModelConfig(model="org/name")).path == str(tmp_path / "org" / "name")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("nothing", "no model directory nothing"),
        ("./a/b", "no model directory ./a/b"),
        ("/a/b", "no model directory /a/b"),
        ("../x/y", "../x/y"),
    ],
)
def test_what_is_neither(name: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load(name)


def test_broken_directories(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config.json"):
        load(tmp_path)
    write(tmp_path, weights="pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"no \*.safetensors weights; pytorch_model.bin"):
        load(tmp_path)
    assert load(tmp_path, load_format="dummy").vocab_size == 10
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match="--tokenizer /nowhere"):
        load(tmp_path, tokenizer="/nowhere")
    with pytest.raises(ConfigError, match="--chat-template /nowhere"):
        load(tmp_path, chat_template="/nowhere")
    with pytest.raises(ConfigError, match="is a file"):
        load(tmp_path / "config.json")


def test_a_hub_model_downloads_data_and_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def download(hub_id: str, **options: Any) -> str:
        asked.update(options, hub_id=hub_id)
        return str(write(tmp_path))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    info = load("org/name", revision="v2")
    assert (info.path, info.name) == (str(tmp_path), "org/name")
    assert (asked["hub_id"], asked["revision"]) == ("org/name", "v2")
    from huggingface_hub.utils import filter_repo_objects

    files = [
        "config.json",
        "a/model-1.safetensors",
        "tokenizer.model",
        "chat_template.jinja",
        "modeling_x.py",
        "pytorch_model.bin",
        "x.gguf",
    ]
    kept = filter_repo_objects(files, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"])
    assert list(kept) == files[:4]


def test_an_unreachable_hub_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"org/name.*cannot be reached") as error:
        load("org/name")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kind, expected",
    [("RepositoryNotFoundError", "no such model"), ("GatedRepoError", "access"), ("RevisionNotFoundError", "no revision 'v9'")],
)
def test_refusals_of_the_hub(kind: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*_: Any, **__: Any) -> str:
        response = httpx.Response(404, request=httpx.Request("GET", "http://hub"))
        raise getattr(errors, kind)("a long\ntext", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ConfigError, match=expected):
        load("org/name", revision="v9")

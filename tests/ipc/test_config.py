"""Settings: sources, precedence, and errors that name what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ipc import config, model_info
from ipc.errors import ConfigError


def test_flags_win_over_environment_and_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "quire.toml"
    file.write_text("[server]\nport = 1\nhost = '127.0.0.2'\n[scheduler]\nmax_num_seqs = 7\n")
    loaded = config.load({"port": 3}, {"QUIRE_PORT": "2", "QUIRE_MAX_NUM_SEQS": "8", "HOME": "/"}, str(file))
    assert (loaded.server.port, loaded.server.host, loaded.scheduler.max_num_seqs) == (3, "127.0.0.2", 8)


def test_lists_and_booleans_come_from_the_environment() -> None:
    loaded = config.load({}, {"QUIRE_API_KEY": "a, b", "QUIRE_ENABLE_PREFIX_CACHING": "false"})
    assert loaded.server.api_key == ["a", "b"]
    assert loaded.cache.enable_prefix_caching is False


@pytest.mark.parametrize(
    ("flags", "environ", "text"),
    [
        ({"allowed_origin": ["*", "app.example"]}, {}, ["allowed_origin", "https://app.example", "got 'app.example'"]),
        ({"allowed_origin": ["https://app.example/page"]}, {}, ["allowed_origin", "/page"]),
        ({"allowed_host": ["*", "http://chat.example"]}, {}, ["allowed_host", "got 'http://chat.example'"]),
        ({"allowed_host": ["chat.example:80"]}, {}, ["allowed_host", "without scheme and port"]),
        ({"cpu_threads": 100_000}, {}, ["--cpu-threads", "1024"]),
        ({"allowed_origin": [""]}, {}, ["allowed_origin", "got ''"]),
        ({"port": 99999}, {}, ["--port", "99999"]),
        ({"prot": 1}, {}, ["prot", "'port'"]),
        ({"dtype": "int3"}, {}, ["--dtype", "bfloat16", "int3"]),
        ({"max_num_seqs": "many"}, {}, ["--max-num-seqs: expected an integer, got 'many'"]),
        ({}, {"QUIRE_PORT": "x"}, ["QUIRE_PORT", "integer"]),
        ({}, {"QUIRE_ENABLE_PREFIX_CACHING": "maybe"}, ["QUIRE_ENABLE_PREFIX_CACHING", "true or false"]),
        ({}, {"QUIRE_POT": "1"}, ["QUIRE_POT", "'port'"]),
        ({"kv_cache_memory": "lots"}, {}, ["kv_cache_memory", "lots"]),
        ({"gpu_memory_utilization": 1.5}, {}, ["--gpu-memory-utilization", "1.5"]),
        ({"gpu_memory_utilization": 0}, {}, ["--gpu-memory-utilization", "> 0"]),
        ({"kv_cache_dtype": "fp8_e5m2"}, {}, ["--kv-cache-dtype", "auto, fp8, fp8_e4m3", "fp8_e5m2"]),
        ({"enforce_eager": "perhaps"}, {}, ["--enforce-eager", "perhaps"]),
        ({"max_num_seqs": 4096}, {}, ["max_num_batched_tokens", "4096"]),
    ],
)
def test_bad_settings_name_themselves(flags: dict[str, Any], environ: dict[str, str], text: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        config.load(flags, environ)
    assert all(part in str(error.value) for part in text), str(error.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[server]\nprot = 1", ["prot", "port"]),
        ("[sever]\nport = 1", ["[sever]", "server"]),
        ("[server]\nport = 'x'", ["port", "'x'"]),
        ("[server", ["TOML"]),
        ("[cache]\nport = 1", ["port", "[cache]"]),
    ],
)
def test_a_bad_file_names_the_place(tmp_path: Path, content: str, text: list[str]) -> None:
    file = tmp_path / "quire.toml"
    file.write_text(content)
    with pytest.raises(ConfigError) as error:
        config.load({}, {}, str(file))
    assert all(part in str(error.value) for part in [*text, "quire.toml"]), str(error.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        config.load({}, {}, "nowhere.toml")


def test_every_setting_has_a_description_and_a_unique_name() -> None:
    fields = list(config.fields())
    assert len({field.name for field in fields}) == len(fields) > 20
    assert [field.name for field in fields if not field.description] == []


def test_sizes() -> None:
    assert config.parse_bytes("auto") is None
    assert config.parse_bytes("512M") == 512 * 2**20
    assert config.parse_bytes("1.5g") == 3 * 2**29
    for bad in ("", "G", "-1G", "1X", "nan", "inf"):
        with pytest.raises(ConfigError):
            config.parse_bytes(bad)


def _model(tmp_path: Path, generation: dict[str, Any] | None = None, **changes: Any) -> str:
    document = {"architectures": ["LlamaForCausalLM"], "vocab_size": 100, "max_position_embeddings": 64, "eos_token_id": 2, **changes}
    (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return str(tmp_path)


def test_model_info_prefers_the_generation_config(tmp_path: Path) -> None:
    info = model_info.read(_model(tmp_path, {"eos_token_id": [3, 4], "temperature": 0.5}), config.ModelConfig(), "m")
    assert (info.eos_token_ids, info.max_model_len, info.generation_defaults) == ([3, 4], 64, {"temperature": 0.5})


@pytest.mark.parametrize(
    ("changes", "length", "text"),
    [
        ({"architectures": None}, 0, "architectures"),
        ({"vocab_size": -1}, 0, "vocab_size"),
        ({"vocab_size": "9"}, 0, "vocab_size"),
        ({"max_position_embeddings": None}, 0, "max_position_embeddings"),
        ({"eos_token_id": 100}, 0, "eos_token_id"),
        ({"eos_token_id": 3.5}, 0, "eos_token_id"),
        ({"eos_token_id": {"a": 1}}, 0, "eos_token_id"),
        ({"text_config": [1]}, 0, "text_config must be an object"),
        ({"vocab_size": 10**12}, 0, "vocab_size must be below"),
        ({}, 65, "max_model_len 65"),
    ],
)
def test_bad_model_configs_name_the_key(tmp_path: Path, changes: dict[str, Any], length: int, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        model_info.read(_model(tmp_path, **changes), config.ModelConfig(max_model_len=length), "m")


@pytest.mark.parametrize(
    ("advice", "text"),
    [({"temperature": "hot"}, "temperature"), ({"temperature": -3}, "temperature"), ({"top_p": 7}, "top_p"), ({"top_k": 2.5}, "top_k")],
)
def test_advice_that_no_request_could_follow(tmp_path: Path, advice: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=rf"generation_config\.json: {text} must be"):
        model_info.read(_model(tmp_path, advice), config.ModelConfig(), "m")
    # A model that does not draw gives none.
    assert model_info.read(_model(tmp_path, {**advice, "do_sample": False}), config.ModelConfig(), "m").generation_defaults == {}
    fine = model_info.read(_model(tmp_path, {"top_k": 20.0, "top_p": None}), config.ModelConfig(), "m")
    assert fine.generation_defaults == {"top_k": 20.0}


def test_broken_model_directories(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        model_info.read(str(tmp_path / "no"), config.ModelConfig(), "m")
    with pytest.raises(ConfigError, match=r"no config\.json"):
        model_info.read(str(tmp_path), config.ModelConfig(), "m")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        model_info.read(str(tmp_path), config.ModelConfig(), "m")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="JSON object"):
        model_info.read(str(tmp_path), config.ModelConfig(), "m")

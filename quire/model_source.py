"""From the model argument to a directory on this machine: the bundled model, a directory, or a download from the Hugging Face hub."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from ipc import model_info
from ipc.config import Config, ModelConfig, ModelInfo
from ipc.errors import ConfigError

BUNDLED_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "demo_model")
BUNDLED_NAME = "quire-demo"

# What is read of a hub repository. Weights in other formats are left out, and so is every Python file: code from a model is never run.
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
HUB_IGNORED = ["original/*", "consolidated*", "onnx/*"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class ModelSource(NamedTuple):
    """Where the model is, and what clients call it unless told otherwise."""

    path: str
    name: str


def load(config: Config) -> ModelInfo:
    """Find the model (downloading it if it is a hub id) and read what all processes must know of it.

    Raises ConfigError naming the directory, file or key that is wrong; weights themselves are checked by the worker.
    """
    source = find(config.model)
    if config.model.tokenizer and not os.path.isdir(config.model.tokenizer):
        raise ConfigError(f"--tokenizer {config.model.tokenizer}: there is no such directory")
    if config.model.chat_template and not os.path.isfile(config.model.chat_template):
        raise ConfigError(f"--chat-template {config.model.chat_template}: there is no such file")
    info = model_info.read(source.path, config.model, config.model.served_model_name or source.name)
    if config.model.load_format == "safetensors":
        _check_weights(source.path)
    return info


def find(config: ModelConfig) -> ModelSource:
    """Resolve `config.model`: empty is the bundled model, a directory is itself, org/name comes from the hub. Raises ConfigError."""
    wanted = config.model
    path = os.path.abspath(os.path.expanduser(wanted)) if wanted else BUNDLED_PATH
    if config.revision and os.path.exists(path):
        raise ConfigError(f"--revision {config.revision}: only a model of the Hugging Face hub has revisions, and {path} is here")
    if not wanted:
        return ModelSource(BUNDLED_PATH, BUNDLED_NAME)
    if os.path.isdir(path):
        return ModelSource(path, os.path.basename(path))
    if os.path.exists(path):
        raise ConfigError(f"{wanted} is a file; a model is a directory with config.json, tokenizer.json and *.safetensors")
    if not _HUB_ID.fullmatch(wanted):
        raise ConfigError(f"there is no model directory {wanted}; a model on the Hugging Face hub is named org/name")
    return ModelSource(_download(wanted, config.revision or None), wanted)


def _check_weights(path: str) -> None:
    """Say at once, before any process starts, that a directory has nothing to load."""
    names = os.listdir(path)
    if any(name.endswith(".safetensors") for name in names):
        return
    others = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".gguf", ".ckpt", ".h5")))
    hint = f"; {others[0]} is in a format that quire does not read" if others else ""
    raise ConfigError(f"{path} has no *.safetensors weights{hint}")


def _download(hub_id: str, revision: str | None) -> str:
    """The directory of a hub model in the local cache, fetched as far as it is missing. Raises ConfigError."""
    from huggingface_hub import errors, snapshot_download

    where = f"there is no directory {hub_id}, and as a hub model it cannot be had"
    try:
        return str(snapshot_download(hub_id, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=HUB_IGNORED))
    except errors.GatedRepoError:
        raise ConfigError(f"{where}: access must be asked for on its page; then log in with `hf auth login` or set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise ConfigError(f"{where}: the hub knows no such model (a private one needs HF_TOKEN)") from None
    except errors.RevisionNotFoundError:
        raise ConfigError(f"{where}: it has no revision {revision!r}") from None
    except errors.LocalEntryNotFoundError:
        raise ConfigError(f"{where}: the hub cannot be reached, and the local cache does not have it") from None
    except errors.HFValidationError as error:
        raise ConfigError(f"{where}: {error}") from None
    # Whatever HTTP library the hub client uses in this version: all its errors are OSErrors or carry the hub's own base class.
    except (OSError, errors.HfHubHTTPError) as error:
        raise ConfigError(f"{where}: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from None

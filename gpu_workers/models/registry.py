"""Which family reads a checkpoint: config.json's `architectures` picks it.

A family is a module with `spec(config: ConfigReader) -> DecoderSpec`, `NAMES: dict[str, str]` (our parameter name to the
checkpoint's, {} standing for the layer number) and `IGNORED: tuple[str, ...]` (regular expressions of checkpoint tensors that are not
needed). Other packages add theirs through the entry-point group `quire.models`: name = architecture, value = module.
"""

from __future__ import annotations

import importlib
from typing import Protocol

from gpu_workers.models.config_reader import ConfigReader
from gpu_workers.models.spec import DecoderSpec
from ipc.errors import ConfigError

ENTRY_POINTS = "quire.models"
_FAMILIES = "gpu_workers.models.families"
OWN = {
    "LlamaForCausalLM": f"{_FAMILIES}.llama",
    "MistralForCausalLM": f"{_FAMILIES}.mistral",
    "Qwen2ForCausalLM": f"{_FAMILIES}.qwen2",
    "Qwen3ForCausalLM": f"{_FAMILIES}.qwen3",
}


class Family(Protocol):
    NAMES: dict[str, str]
    IGNORED: tuple[str, ...]

    def spec(self, config: ConfigReader) -> DecoderSpec: ...


def family(architecture: str) -> Family:
    """The family module for `architecture`. Raises ConfigError naming it and the known ones."""
    if architecture in OWN:
        return importlib.import_module(OWN[architecture])  # type: ignore[return-value]
    from importlib.metadata import entry_points

    added = entry_points(group=ENTRY_POINTS)
    for entry in added:
        if entry.name == architecture:
            return entry.load()  # type: ignore[no-any-return]
    known = ", ".join(sorted([*OWN, *(entry.name for entry in added)]))
    raise ConfigError(f"the model's architecture {architecture} is not supported; there are {known}")

"""Checkpoints: one safetensors file with the weights, the optimizers' memory, and where the run was."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bench.demo_model.model import SHAPES, Llama
from bench.demo_model.muon import Muon


@dataclass
class Place:
    """Where a run is: the size it trains, steps and tokens taken, and the part of its schedule that is done."""

    size: str
    step: int = 0
    tokens: int = 0
    progress: float = 0.0


def save(path: Path, place: Place, model: Llama, muon: Muon, adam: torch.optim.Optimizer) -> None:
    """Writes beside the path first, so that a checkpoint is there in full or not at all."""
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"muon.{name}": value for name, value in muon.state_dict().items()}
    for number, memory in adam.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": value for name, value in memory.items()}
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={"place": json.dumps(asdict(place))})
    part.rename(path)


def read(path: Path) -> tuple[Place, dict[str, Tensor]]:
    """The place and all tensors of a checkpoint."""
    with safe_open(path, "pt") as stored:
        return Place(**json.loads(stored.metadata()["place"])), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with this prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def load(path: Path, model: Llama, muon: Muon, adam: torch.optim.Optimizer) -> Place:
    """Puts a checkpoint's state into these three."""
    place, tensors = read(path)
    model.load_state_dict(under(tensors, "model."))
    muon.load_state_dict(under(tensors, "muon."))
    memory: dict[int, dict[str, Tensor]] = {}
    for name, value in under(tensors, "adam.").items():
        number, entry = name.split(".")
        memory.setdefault(int(number), {})[entry] = value
    adam.load_state_dict({"state": memory, "param_groups": adam.state_dict()["param_groups"]})
    return place


def load_model(path: Path) -> Llama:
    """The model alone."""
    place, tensors = read(path)
    model = Llama(SHAPES[place.size])
    model.load_state_dict(under(tensors, "model."))
    return model

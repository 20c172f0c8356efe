"""Builds a model from its directory: config, family, decoder, weights."""

from __future__ import annotations

from collections.abc import Callable

from gpu_workers.collectives import Collectives
from gpu_workers.device import Device
from gpu_workers.device.base import AttentionShape
from gpu_workers.models import registry
from gpu_workers.models.config_reader import ConfigReader
from gpu_workers.models.decoder import Decoder, Heads
from gpu_workers.quantization.rounding import BITS
from gpu_workers.weights import dummy, safetensors_files
from ipc.config import Config, ModelInfo

# A head tied to the embedding may be written out again by a checkpoint; its copy is not needed.
TIED_HEAD = "head.weight"


def load(config: Config, model: ModelInfo, device: Device, ranks: Collectives, progress: Callable[[int, int], None]) -> Decoder:
    """The model, ready to compute. progress(done, total) counts bytes of parameters.

    Raises ConfigError naming what is wrong: an unknown architecture, a config key, a file, a tensor.
    """
    family = registry.family(model.architecture)
    reader = ConfigReader.open(model.path)
    spec = family.spec(reader)
    dtype = device.dtype(config.model.dtype, reader.dtype())
    reader.refuse_unread()
    quantization = config.model.quantization
    if quantization != "none":
        device.check_quantization(quantization, dtype)
    heads = Heads.of(spec, ranks)
    shape = AttentionShape(spec.head_dim, heads.num // heads.num_kv, heads.num_kv, config.cache.block_size, dtype)
    device.prepare(shape, spec.num_weights * dtype.itemsize // ranks.size)
    decoder = Decoder(spec, model.max_model_len, ranks, dtype, device, quantization)
    parts = list(decoder.parts())
    if config.model.load_format == "dummy":
        dummy.load(parts, progress)
    else:
        ignored = [*family.IGNORED, *([family.NAMES[TIED_HEAD]] if spec.tied_head else [])]
        safetensors_files.load(safetensors_files.Checkpoint(model.path), parts, family.NAMES, ignored, progress)
    held = 1.0 if quantization == "none" else BITS[quantization] / 8 / dtype.itemsize
    decoder.size = sum(part.target.numel() for part in parts), int(sum(part.target.nbytes for part in parts) * held)
    decoder.process(device)
    return decoder

"""An NVIDIA GPU: torch owns its memory and multiplies matrices, kernels of ours do the rest, steps overlap with the host's work."""

from __future__ import annotations

import logging

import torch

from gpu_workers.cuda.machine import CUDAMachine, Machine
from gpu_workers.cuda.memory import Budget, Key
from gpu_workers.cuda.waiter import Waiter
from gpu_workers.device.base import AttentionShape, Deliver, PackedLinear, Runner, Serving
from gpu_workers.layers.cuda_ops import CUDAOps
from gpu_workers.layers.ops import Ops
from ipc.config import Config
from ipc.errors import ConfigError
from kernels_cuda import launch, logprobs, paged_decode, paged_prefill_wgmma
from kernels_cuda.build import ahead
from kernels_cuda.build.ahead import Ahead
from kernels_cuda.errors import KernelError
from kernels_cuda.kernel import dtype_macro

log = logging.getLogger(__name__)

ON_CPU = "or use --device cpu"


class CUDADevice:
    """See device/base.py for the methods."""

    collectives = "nccl"

    def __init__(self, index: int, config: Config, machine: Machine | None = None) -> None:
        """Raises ConfigError when the GPU cannot be used, with what to do about it."""
        self._config = config
        _check_config(config)
        self._machine = machine if machine is not None else _open(index, config.parallel.tensor_parallel_size)
        self.torch_device, self.name = self._machine.device, self._machine.chip.name
        self._budget = Budget(self._machine, self._config.device.gpu_memory_utilization)
        self._runner: Runner | None = None
        self._kernels: Ahead | None = None
        torch.set_grad_enabled(False)

    def dtype(self, wanted: str, checkpoint: torch.dtype) -> torch.dtype:
        if wanted == "float32":
            raise ConfigError("--dtype float32: the CUDA kernels compute in bfloat16 or float16; " + ON_CPU)
        if wanted == "auto" and checkpoint not in (torch.bfloat16, torch.float16):
            log.info("the checkpoint's %s is served as bfloat16", str(checkpoint).removeprefix("torch."))
            return torch.bfloat16
        return {"auto": checkpoint, "bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]

    def cache_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype if self._config.cache.kv_cache_dtype == "auto" else torch.float8_e4m3fn

    def begin_step(self, num_tokens: int, num_weights: int, num_bytes: int) -> None:
        pass

    def end_step(self) -> None:
        pass

    def kv_cache_bytes(self, wanted: int | None, serving: Serving) -> int:
        self._wait_for_kernels()
        if wanted is not None:
            return wanted
        from gpu_workers.cuda import largest_step

        def run() -> None:
            largest_step.run(serving, self, self._machine, self._config)

        key = Key.of(self._config, serving, self._machine)
        return self._budget.kv_cache_bytes(key, serving.ranks, run, graphs=not self._config.device.enforce_eager)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.torch_device)

    def pack_linear(self, weight: torch.Tensor) -> PackedLinear | None:
        return None

    def pack_gated(self, weight: torch.Tensor, activation: str) -> PackedLinear | None:
        return None

    def check_quantization(self, name: str, dtype: torch.dtype) -> None:
        raise ConfigError(f"--quantization {name}: the CUDA device has no kernels for it yet; {ON_CPU}")

    def round_linear(self, weight: torch.Tensor, name: str) -> PackedLinear:
        raise NotImplementedError("check_quantization refuses them all")

    def round_gated(self, weight: torch.Tensor, name: str, activation: str) -> PackedLinear | None:
        raise NotImplementedError("check_quantization refuses them all")

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()

    def ops(self, dtype: torch.dtype) -> Ops:
        return CUDAOps()

    def prepare(self, shape: AttentionShape, weight_bytes: int) -> None:
        if shape.head_dim not in paged_decode.HEAD_DIMS:
            sizes = ", ".join(map(str, paged_decode.HEAD_DIMS))
            raise ConfigError(f"the model's heads have {shape.head_dim} dimensions; the CUDA kernels are made for {sizes}; {ON_CPU}")
        wgmma = self._config.device.attention_prefill == "wgmma"
        if wgmma:
            self._check_wgmma(shape)
        self._budget.expect(weight_bytes)
        if self._machine.chip.architectures:
            fp8 = self.cache_dtype(shape.dtype) != shape.dtype
            kernels = ahead.needed(shape.head_dim, dtype_macro(shape.dtype, "the model"), fp8, wgmma)
            self._kernels = ahead.Ahead(kernels, self._machine.chip.architectures)

    def explain(self, error: BaseException) -> BaseException:
        return self._budget.explain(error)

    def runner(self, serving: Serving, num_blocks: int, deliver: Deliver) -> Runner:
        from gpu_workers.cuda.runner import CUDARunner

        self._wait_for_kernels()
        memory = serving.arena.memory
        self._machine.pin(memory.ctypes.data, memory.nbytes)
        graphs = not self._config.device.enforce_eager
        self._runner = CUDARunner(serving, self, self._machine, self._config, num_blocks, Waiter(deliver), graphs)
        return self._runner

    def _check_wgmma(self, shape: AttentionShape) -> None:
        able = self._machine.chip.architectures or paged_prefill_wgmma.SOURCE.architectures  # none: emulated, which runs every source
        reason = paged_prefill_wgmma.obstacle(shape.head_dim, self.cache_dtype(shape.dtype), able)
        if reason is not None:
            raise ConfigError(f"--attention-prefill wgmma: {reason}; leave it at auto")

    def _wait_for_kernels(self) -> None:
        if self._kernels is not None:
            try:
                self._kernels.wait()
            except KernelError as error:
                raise ConfigError(f"--device cuda: {error}; {ON_CPU}") from None


def _check_config(config: Config) -> None:
    if config.cache.block_size % paged_decode.TILE:
        raise ConfigError(f"--block-size {config.cache.block_size}: on CUDA it must be a multiple of {paged_decode.TILE}")
    if config.model.max_logprobs > logprobs.MAX_WIDTH:
        raise ConfigError(f"--max-logprobs {config.model.max_logprobs}: at most {logprobs.MAX_WIDTH} on CUDA")


def _open(index: int, num_ranks: int) -> Machine:
    if torch.version.cuda is None:
        raise ConfigError(
            f"--device cuda: the installed torch ({torch.__version__}) was built without CUDA; install its CUDA 13 build, {ON_CPU}"
        )
    try:
        torch.cuda.init()
        count = torch.cuda.device_count()
        if count < num_ranks:
            visible = "1 GPU is" if count == 1 else f"{count} GPUs are"
            raise ConfigError(f"--tensor-parallel-size {num_ranks}: {visible} visible (see nvidia-smi, CUDA_VISIBLE_DEVICES)")
        machine = CUDAMachine(index)
        # Now rather than at the first launch: whether CuPy is there, and kernels for this GPU.
        launch.open_backend(index)
    except KernelError as error:
        raise ConfigError(f"--device cuda: {error}") from None
    except (RuntimeError, AssertionError) as error:  # what torch raises for a missing or too old driver
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"--device cuda: {first} (CUDA 13 needs driver 580 or newer; see nvidia-smi); {ON_CPU}") from None
    return machine

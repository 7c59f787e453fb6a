"""How training computes on a GPU: TF32, determinism, frozen weights in half precision, compiled units."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from asdm.distill.settings import DistillSettings
from asdm.measure.device import is_gpu
from asdm.models.execution import dtype_of
from asdm.unet import blocks

COMPILE: dict[str, Any] = {"dynamic": False}  # arguments of torch.compile
SHAPES = 64  # of units with one forward: a ResNet is compiled once for each of its widths and sizes
WORKSPACE = ":4096:8"  # with which cuBLAS computes the same bits on every stream


@contextmanager
def torch_settings(settings: DistillSettings) -> Iterator[None]:
    """torch's settings for a run on its device; those from before come back."""
    on_gpu, cudnn = is_gpu(settings.device), torch.backends.cudnn
    products, deterministic = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    warn_only, flags = torch.is_deterministic_algorithms_warn_only_enabled(), (cudnn.deterministic, cudnn.benchmark)
    limit = torch._dynamo.config.recompile_limit if settings.compile else None
    try:
        if on_gpu:
            torch.set_float32_matmul_precision("high")  # TF32, as cuDNN's convolutions have by default
        if settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)
            torch.use_deterministic_algorithms(True)
            cudnn.deterministic, cudnn.benchmark = True, False
        if settings.compile:
            torch._dynamo.config.recompile_limit = SHAPES
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        cudnn.deterministic, cudnn.benchmark = flags
        if limit is not None:
            torch._dynamo.config.recompile_limit = limit


def frozen_dtype(settings: DistillSettings) -> torch.dtype | None:
    """The precision of frozen weights and encoders, if not fp32: autocast's on an accelerator.

    On a CPU they stay in fp32, where a second copy would take more memory than it saves time.
    """
    return None if settings.device == "cpu" or settings.dtype == "fp32" else dtype_of(settings.dtype)


@contextmanager
def frozen_in(dtype: torch.dtype | None, *models: nn.Module) -> Iterator[None]:
    """Frozen weights of convolutions and linear layers in half precision; the originals wait in the host's memory.

    Autocast rounds these weights at every call, so no result changes. What several models share stays shared. Norms,
    which autocast computes in fp32, keep their precision, as do trained weights. Raises RuntimeError if one of the
    weights has changed in the meantime.
    """
    weights = list(rounded_by_autocast(models)) if dtype else []
    originals: dict[tuple[int, torch.Size], torch.Tensor] = {}
    halves: dict[tuple[int, torch.Size], torch.Tensor] = {}
    keys = [(parameter.data_ptr(), parameter.shape) for parameter in weights]
    for key, parameter in zip(keys, weights, strict=True):
        if key not in halves:
            originals[key], halves[key] = parameter.data.cpu(), parameter.data.to(dtype)
        parameter.data = halves[key]
    try:
        yield
    finally:
        changed = False
        for key, half in list(halves.items()):
            original = originals[key].to(half.device)
            changed |= not torch.equal(half, original.to(dtype))
            for parameter in (p for k, p in zip(keys, weights, strict=True) if k == key):
                parameter.data = original
            del halves[key]
        if changed:
            raise RuntimeError("a frozen tensor was written to while it was in half precision")


def rounded_by_autocast(models: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    """Frozen parameters that every call under autocast would round to half precision."""
    for model in models:
        for module in model.modules():
            if type(module) in (nn.Conv2d, nn.Linear):
                yield from (p for p in module.parameters(recurse=False) if not p.requires_grad)


@contextmanager
def compiled_units(*models: tuple[nn.Module, Iterable[str]]) -> Iterator[int]:
    """Compile the units of each UNet, but those around a module whose map is captured; yields how many.

    A unit at a time: what is captured between units stays outside, and units of one shape share their code.
    """
    with ExitStack() as stack:
        count = 0
        for unet, captured in models:
            names = tuple(captured)
            for unit in blocks.iter_units(unet):
                if not any(f"{name}.".startswith(f"{unit.fqn}.") for name in names):
                    unit.modules[0].compile(**COMPILE)
                    stack.callback(setattr, unit.modules[0], "_compiled_call_impl", None)
                    count += 1
        yield count

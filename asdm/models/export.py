"""A UNet in a form that runs without this package: ONNX, OpenVINO, or a diffusers folder of one dtype.

An exported graph is run before it is handed over: its output must equal PyTorch's, at the batch it was traced with and,
where its batch is free, at another one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asdm.measure import backends, machine
from asdm.measure.backends import _onnx
from asdm.models import example_inputs, loading
from asdm.models.families import Family, load_family
from asdm.models.settings import Setup
from asdm.records.build import ExportResult
from asdm.unet import flops
from asdm.utils.io import check_writable, whole_folder
from asdm.utils.progress import Tell

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}  # target → the backend that runs it
TARGETS = (*RUNTIMES, "diffusers")
TOLERANCE = 1e-3  # of the largest output
TRACED_BATCH, OTHER_BATCH = 2, 3


def export(
    source: str, to: str, output: Path, setup: Setup = Setup(), force: bool = False, tell: Tell = lambda *_: None
) -> ExportResult:
    """Write the UNet of a family or of a student's folder to the folder `output`, whole or not at all.

    Raises ValueError for an unknown target, a dtype that the target lacks, and a graph whose output differs.
    """
    dtype, size = setup.dtype, setup.size
    if to not in TARGETS:
        raise ValueError(f"unknown target {to!r}; choose from {', '.join(TARGETS)}.")
    if to in RUNTIMES and dtype != "fp32":
        raise ValueError(f"{to} is exported in fp32, got {dtype}; its runtime chooses the dtype that it computes in.")
    family = load_family(source)
    backend = backends.load(RUNTIMES[to], dtype, "cpu") if to in RUNTIMES else None
    shapes = loading.meta_unet(family, dtype)
    counted = flops.count(shapes, (), example_inputs.unet_inputs(family, OTHER_BATCH, size, "meta", dtype))
    machine.require_memory(int(2.2 * counted.peak_memory_bytes), "cpu", f"exporting {family.name}")
    check_writable(output, force)

    tell("loading", 0, None)
    unet: Any = loading.load_unet(family, setup.weights or loading.default_weights(family), "cpu", dtype, setup.seed)
    about: dict[str, Any] = {"family": family.name, "to": to, "dtype": dtype, "params": counted.params}
    with whole_folder(output, force) as folder:
        if backend is None:
            unet.save_pretrained(folder, safe_serialization=True)
            plain = type(unet).__name__ == "UNet2DConditionModel"
            return ExportResult(**about, plain_diffusers=plain)
        (folder / "config.json").write_text(json.dumps(family.unet, indent=1, allow_nan=False) + "\n")
        return ExportResult(**about, size=size or family.size, **_graph(unet, family, backend, folder, size, tell))


def _graph(unet: nn.Module, family: Family, backend: Any, folder: Path, size: int | None, tell: Tell) -> dict[str, Any]:
    """Export with a free batch where that gives the right output at two of them, with the traced one otherwise."""

    def differences(batches: tuple[int, ...], **options: Any) -> dict[int, float]:
        tell(f"tracing at batch {batches[0]}", 0, None)
        _onnx.export(unet, example_inputs.unet_inputs(family, batches[0], size), folder, **options)
        tell("comparing with PyTorch", 0, None)
        differences_by_batch = {
            batch: _difference(unet, example_inputs.unet_inputs(family, batch, size), backend, folder)
            for batch in batches
        }
        for batch, difference in differences_by_batch.items():
            if not difference <= TOLERANCE:
                raise ValueError(f"its output at batch {batch} is {difference:.1e} of the largest from PyTorch's")
        return differences_by_batch

    try:
        differences_by_batch, why = differences((TRACED_BATCH, OTHER_BATCH), batch_name="batch"), None
    except (ValueError, RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        why = str(error).strip().splitlines()[0]
        differences_by_batch = differences((1,))
    backend.keep(folder / _onnx.MODEL)
    return {"batch": None if why is None else 1, "why_fixed": why, "difference": max(differences_by_batch.values())}


def _difference(unet: nn.Module, inputs: dict[str, Any], backend: Any, folder: Path) -> float:
    """Largest difference of the graph's output from PyTorch's, as a share of the largest output."""
    with torch.inference_mode():
        expected = unet(**inputs)[0]
    out = torch.from_numpy(backend.evaluate(folder / _onnx.MODEL, _onnx.Call(unet, inputs).feed()))
    return float((out - expected).abs().max() / expected.abs().max()) if out.shape == expected.shape else float("inf")


def describe(result: ExportResult, folder: Path) -> str:
    """What was written, in a few lines."""
    lines = [f"Wrote {folder}: {result.params / 1e6:.1f} M parameters, {result.to}, {result.dtype}."]
    if result.plain_diffusers is not None:
        loader = "diffusers.UNet2DConditionModel" if result.plain_diffusers else "asdm.StudentUNet"
        lines.append(f"{loader}.from_pretrained loads it.")
    if result.difference is not None:
        batch = "any batch" if result.batch is None else f"batch {result.batch} only"
        lines.append(
            f"It takes {batch} at {result.size}×{result.size}; "
            f"its output is within {result.difference:.1e} of PyTorch's largest."
        )
    if result.why_fixed:
        lines.append(f"The batch is fixed because the graph with a free one fails: {result.why_fixed.rstrip('.')}.")
    return "\n".join(lines)

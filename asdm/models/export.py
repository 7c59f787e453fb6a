"""A UNet in a form that runs without this package: ONNX, OpenVINO, Core ML, a diffusers folder, or a single file.

An exported graph is run before it is handed over: its output must equal PyTorch's, at the batch it was traced with and,
where its batch is free, at another one. Core ML runs on a Mac alone, where a script beside it does the same.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asdm.measure import backends, machine
from asdm.measure.backends import _onnx
from asdm.models import adapters, checkpoints, coreml, example_inputs, loaders, loading, single_file
from asdm.models.execution import RANDOM, dtype_of, smaller_dtype
from asdm.models.families import Family, load_family
from asdm.models.settings import Setup
from asdm.models.sources import resolve
from asdm.models.student import structure
from asdm.records.build import ExportResult, LoaderClaim
from asdm.unet import flops
from asdm.utils import console, registry, sizes
from asdm.utils.console import plain
from asdm.utils.io import check_replaceable, check_writable, whole_folder
from asdm.utils.progress import Tell
from asdm.utils.sizes import Size

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}  # target → the backend that runs it
TARGETS = (*RUNTIMES, "coreml", "diffusers", "single_file")
READERS = {  # whose misreading of a layout is ours to prevent; the others take any file for a published UNet
    "comfyui": ("ComfyUI", "diffusers"), "sdcpp": ("stable-diffusion.cpp",), "diffusers_unet": ("ComfyUI", "diffusers"),
}  # fmt: skip
MARKER = "export.json"  # the record of what was written, by which it may be replaced
TOLERANCE = 1e-3  # of the largest output
TRACED_BATCH, OTHER_BATCH = 2, 3


def export(
    source: str,
    to: str,
    output: Path,
    setup: Setup = Setup(),
    force: bool = False,
    tell: Tell = lambda *_: None,
    layout: str = "comfyui",
    pipeline: str | None = None,
    lora: Path | None = None,
) -> ExportResult:
    """Write the UNet of a family or of a student's folder to `output`, whole or not at all.

    With `lora`, a LoRA of the student's teacher is written for the student instead, in the naming that it has.

    `output` is a folder, or a .safetensors file for `single_file`, whose tensors have the names of `layout`; the VAE
    and text encoders of the diffusers folder `pipeline` go into it too. Raises ValueError for an unknown target, a
    dtype that the target lacks, a graph whose output differs, and without `force` for a UNet that another program
    would run as something that it is not.
    """
    dtype, size = setup.dtype, setup.size
    if to not in TARGETS:
        raise ValueError(f"unknown target {to!r}; choose from {', '.join(TARGETS)}.")
    if to in RUNTIMES and dtype != "fp32":
        raise ValueError(f"{to} is exported in fp32, got {dtype}; its runtime chooses the dtype that it computes in.")
    if to == "coreml":
        coreml.check(dtype)
    if lora:
        check_single_file(output, layout)
        return single_file.convert_lora(load_family(source), lora, output, layout, force)
    family, weights = resolve(source, setup)
    setup = replace(setup, weights=weights, device="cpu", dtype="fp32" if to == "coreml" else dtype)
    if to == "single_file":
        check_single_file(output, layout)
        return _single_file(family, output, setup, force, tell, layout, pipeline)
    if to in RUNTIMES:
        backends.load(RUNTIMES[to], dtype, "cpu")
    shapes = loading.meta_unet(family, setup.dtype)
    counted = flops.count(shapes, (), example_inputs.unet_inputs(family, OTHER_BATCH, size, "meta", setup.dtype))
    needed = int(2.2 * counted.peak_memory_bytes)
    machine.require_memory(needed, "cpu", f"exporting {family.name}", "a smaller --size")
    check_replaceable(output, force, MARKER, (source, weights))

    tell("loading", 0, None)
    unet: Any = loading.load_teacher(family, setup)
    about: dict[str, Any] = {
        "family": family.name, "weights": loading.weights_name(family, weights), "to": to, "dtype": dtype,
        "params": counted.params,
    }  # fmt: skip
    with whole_folder(output, force, counted.parameter_bytes) as folder:
        facts = single_file.provenance(family, unet)
        about |= source_fields(facts) | _written(unet, family, to, folder, size, dtype, facts, tell)
        result = ExportResult(**about)
        (folder / MARKER).write_text(result.to_json())
    return result


def _written(
    unet: Any,
    family: Family,
    to: str,
    folder: Path,
    size: Size | None,
    dtype: str,
    facts: dict[str, str],
    tell: Tell,
) -> dict[str, Any]:
    """Write the UNet to a folder; what the record says of it."""
    if to == "diffusers":
        unet.save_pretrained(folder, safe_serialization=True)
        single_file.stamp(folder, facts)
        return {"plain_diffusers": type(unet).__name__ == "UNet2DConditionModel"}
    one_timestep = any(getattr(module, "gate", None) == "timestep" for module in unet.modules())
    facts |= {"asdm.timesteps": "one for the whole batch"} if one_timestep else {}
    text = example_inputs.unet_inputs(family, 1, size, "meta")["encoder_hidden_states"]
    tokens = None if text is None else text.shape[1]
    facts |= {"asdm.tokens": str(tokens)} if tokens else {}
    about = {"size": size or family.size, "one_timestep": one_timestep, "tokens": tokens}
    if to == "coreml":
        tell("converting", 0, None)
        inputs = _inputs(unet, family, TRACED_BATCH, size)
        coreml.write(unet, inputs, folder, dtype, facts)
        return about | {"batch": TRACED_BATCH}
    (folder / "config.json").write_text(json.dumps(family.unet, indent=1, allow_nan=False) + "\n")
    backend = backends.load(RUNTIMES[to], "fp32", "cpu")
    return about | _graph(unet, family, backend, folder, size, facts, tell)


def _inputs(unet: Any, family: Family, batch: int, size: Size | None, more: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """Example inputs; where gates mix one kernel for the batch, one timestep, so that the graph takes no more."""
    inputs = example_inputs.unet_inputs(family, batch, size, more=more)
    if any(getattr(module, "gate", None) == "timestep" for module in unet.modules()):
        inputs["timestep"] = inputs["timestep"][:1].clone()
    return inputs


def _single_file(
    family: Family, output: Path, setup: Setup, force: bool, tell: Tell, layout: str, pipeline: str | None
) -> ExportResult:
    shape = structure(family)
    claims = loaders.claims(shape, layout, family.prediction_type)
    misread = [claim for claim in claims if claim.verdict == "wrong" and claim.program in READERS[layout]]
    marked = bool(misread or shape.replaced)
    if marked and not force:
        raise ValueError(_why_marked(family, misread, shape.replaced, layout))
    check_writable(output, force)
    if output.exists() and output.resolve() in (Path(name).resolve() for name in (str(setup.weights), family.name)):
        raise ValueError(f"{output} is the input; name another output.")
    folder = None if layout == "diffusers_unet" or marked else _pipeline_folder(family, pipeline, setup.weights)
    shapes = loading.meta_unet(family, setup.dtype)
    tensors = single_file.tensors_of(shapes, layout, marked)  # before hours of loading: are there names for all?
    need = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    machine.require_memory(int(1.5 * need), "cpu", f"exporting {family.name}", smaller_dtype(setup.dtype))

    tell("loading", 0, None)
    unet: Any = loading.load_teacher(family, setup)
    tensors = single_file.tensors_of(unet, layout, marked)
    built = single_file.build_result(family)
    lora = adapters.lora_names(built) if built else {}
    tell("hashing", 0, None)
    facts = single_file.metadata(family, unet, "asdm" if marked else layout, shape.family, lora)
    if folder:
        tensors |= single_file.components_in(folder, dtype_of(setup.dtype), setup.variant)
    if shape.family == "SDXL" and family.prediction_type == "v_prediction" and not marked:
        tensors["v_pred"] = torch.zeros(0)  # how ComfyUI and others tell it from ε
        if family.zero_terminal_snr:
            tensors["ztsnr"] = torch.zeros(0)
    tell("writing", 0, None)
    single_file.write(output, tensors, facts, force)
    return ExportResult(
        family=family.name, weights=loading.weights_name(family, str(setup.weights)), to="single_file",
        dtype=setup.dtype, params=sum(p.numel() for p in unet.parameters()),
        layout="asdm" if marked else layout, loaders=() if marked else claims, marked=marked,
        pipeline=str(folder) if folder else None, **source_fields(facts),
    )  # fmt: skip


def check_single_file(output: Path, layout: str) -> None:
    """Raises ValueError for an unknown layout, and for an output that is no .safetensors file."""
    if layout not in loaders.LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; choose from {', '.join(loaders.LAYOUTS)}.")
    if output.suffix != ".safetensors":
        raise ValueError(f"a single file must end in .safetensors, got {output}.")


def source_fields(facts: dict[str, str]) -> dict[str, str]:
    return {name: facts[f"asdm.{name}"] for name in ("source_sha256", "base_model", "license")}


def _why_marked(family: Family, misread: list[LoaderClaim], replaced: tuple[str, ...], layout: str) -> str:
    what = "; ".join(f"{claim.program} would run it wrongly: {claim.why}" for claim in misread)
    what = what or f"other programs have no {' and '.join(replaced)}"
    return (
        f"{family.name} is not written in the layout {layout}, because {what}. "
        "--force writes it under names that no other program takes for a Stable Diffusion's."
    )


def _pipeline_folder(family: Family, wanted: str | None, weights: str | None) -> Path | None:
    """The folder or checkpoint whose VAE and text encoders go into the file: as named, else the teacher's own."""
    if wanted == "none":
        return None
    if wanted:
        return Path(wanted)
    built = single_file.build_result(family)
    names = [family.file, weights, family.folder, built.weights if built else None, built.family if built else None]
    for name in filter(None, names):
        folder = (
            load_family(str(name)).folder if str(name) in registry.names("asdm.models.families") else Path(str(name))
        )
        if folder and (folder / "vae").is_dir() and (folder / "text_encoder").is_dir():
            return folder
        if folder and folder.is_file() and checkpoints.is_pipeline(folder):
            return folder
    return None


def _graph(
    unet: nn.Module,
    family: Family,
    backend: Any,
    folder: Path,
    size: Size | None,
    facts: Mapping[str, str],
    tell: Tell,
) -> dict[str, Any]:
    """Export with free batch and sides where that gives the right output at two of each, else with less that is free.

    `facts` become the graph's metadata.
    """
    applied: Any = getattr(unet, "applied", None)
    pooled = applied is not None and bool(applied.replaced)  # averages of 2×2 are traced for even sizes
    step = family.size_step // family.vae_factor * (2 if pooled else 1)

    def difference(batches: tuple[int, ...], more: tuple[int, int] = (0, 0), **free: Any) -> float:
        tell(f"tracing at batch {batches[0]}", 0, None)
        traced = _inputs(unet, family, batches[0], size)
        if any(more) and "hint" in traced.get("added_cond_kwargs", {}):
            raise ValueError("its hint has a size of its own")
        _onnx.export(unet, traced, folder, metadata=facts, **free)
        tell("comparing with PyTorch", 0, None)
        worst = 0.0
        for batch in batches:
            larger = more if batch == OTHER_BATCH else (0, 0)
            inputs = _inputs(unet, family, batch, size, larger)
            error = _difference(unet, inputs, backend, folder)
            if not error <= TOLERANCE:
                where = f"batch {batch}" + (" and another size" if any(larger) else "")
                raise ValueError(f"its output at {where} is {error:.1e} of the largest from PyTorch's")
            worst = max(worst, error)
        return worst

    both = (TRACED_BATCH, OTHER_BATCH)
    attempts: list[tuple[tuple[int, ...], dict[str, Any]]] = [
        (both, {"more": (2 * step, step), "batch_name": "batch", "side_step": step}),
        (both, {"batch_name": "batch"}),
        ((1,), {}),
    ]
    why: list[str] = []
    for batches, free in attempts:
        try:
            worst = difference(batches, **free)
            break
        except (ValueError, RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            if not free:
                raise
            why.append(console.first_line(error).partition(". ")[0][:200])
    backend.keep(folder / _onnx.MODEL, facts)
    return {
        "batch": None if len(why) < 2 else 1, "why_fixed": why[1] if len(why) > 1 else None, "difference": worst,
        "side_step": None if why else step * family.vae_factor, "why_static": why[0] if why else None,
    }  # fmt: skip


def _difference(unet: nn.Module, inputs: dict[str, Any], backend: Any, folder: Path) -> float:
    """Largest difference of the graph's output from PyTorch's, as a share of the largest output."""
    with torch.inference_mode():
        expected = unet(**inputs)[0]
    try:
        out = torch.from_numpy(backend.evaluate(folder / _onnx.MODEL, _onnx.Call(unet, inputs).feed()))
    except Exception as error:  # the runtimes have errors of their own
        raise ValueError(f"its runtime fails: {error}") from None
    return float((out - expected).abs().max() / expected.abs().max()) if out.shape == expected.shape else float("inf")


def describe(result: ExportResult, folder: Path) -> str:
    """What was written, in a few lines."""
    random = ", random weights" if result.weights == RANDOM else ""
    lines = [f"Wrote {folder}: {result.params / 1e6:.1f} M parameters, {result.to}, {result.dtype}{random}."]
    if result.left_out:
        lines.append(f"{len(result.left_out)} modules are not in the student and were left out:")
        lines += [f"  - {plain(name)}" for name in result.left_out]
    if result.plain_diffusers is not None:
        loader = "diffusers.UNet2DConditionModel" if result.plain_diffusers else "asdm.StudentUNet"
        lines.append(f"{loader}.from_pretrained loads it.")
    prompt = f" and a prompt of {result.tokens} tokens" if result.tokens else ""
    if result.difference is not None:
        batch = "any batch" if result.batch is None else f"batch {result.batch} only"
        width, height = sizes.sides(result.size or 0)
        static = f"{width}×{height} only (static)"
        sides = f"any multiples of {result.side_step} pixels" if result.side_step else static
        lines.append(
            f"It takes {batch} at {sides}{prompt}; its output is within {result.difference:.1e} of PyTorch's largest."
        )
    if result.to == "coreml":
        width, height = sizes.sides(result.size or 0)
        lines.append(
            f"It takes batch {result.batch} at {width}×{height} only (static){prompt}, and was not run here: on a Mac, "
            f"`python {folder / coreml.SCRIPT}` compares its output with PyTorch's and times it."
        )
    if result.one_timestep:
        lines.append("Its gates follow the timestep, so it takes one timestep for the whole batch.")
    if result.why_static:
        lines.append(f"The size is fixed because the graph with a free one fails: {result.why_static.rstrip('.')}.")
    if result.why_fixed:
        lines.append(f"The batch is fixed because the graph with a free one fails: {result.why_fixed.rstrip('.')}.")
    return "\n".join([*lines, *_describe_single_file(result)])


def _describe_single_file(result: ExportResult) -> list[str]:
    if result.layout is None:
        return []
    what = f"the VAE and text encoders of {plain(result.pipeline)}" if result.pipeline else "no VAE and no text encoder"
    base, licence = plain(str(result.base_model)), plain(str(result.license))
    lines = [f"Layout {result.layout}, with {what}; base model {base}, licence {licence}."]
    if result.marked:
        lines.append("Its names are ours alone: only asdm loads it, because others would run it as another model.")
    words = {"loads": "loads it", "refuses": "does not load it", "wrong": "would run it wrongly"}
    return lines + [f"  {claim.program} {words[claim.verdict]}: {claim.why}." for claim in result.loaders]

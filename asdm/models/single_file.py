"""A UNet, alone or with its VAE and text encoders, as one safetensors file in the names that other programs read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asdm.models import checkpoints, ldm_names, lora as loras
from asdm.models.adapters import FittedLora, Surgery, fit_lora
from asdm.models.families import Family
from asdm.models.loaders import LAYOUTS
from asdm.models.loading import meta_unet, weights_sha256
from asdm.records.build import BuildResult, ExportResult
from asdm.unet import blocks
from asdm.unet.surgery import Applied
from asdm.utils import console
from asdm.utils.io import whole_file
from asdm.utils.record import read_json, sha256_of_file

ARCHITECTURES = {"SD 1": "stable-diffusion-v1", "SD 2": "stable-diffusion-v2", "SDXL": "stable-diffusion-xl-v1-base"}


def tensors_of(unet: nn.Module, layout: str, marked: bool = False) -> dict[str, torch.Tensor]:
    """A UNet's tensors by a layout's names, without a prefix for `diffusers_unet`; `marked`: by names of our own.

    Raises ValueError for an unknown layout and for a tensor that the layout has no name for.
    """
    tensors = unet.state_dict()
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; choose from {', '.join(LAYOUTS)}.")
    if marked:
        return {ldm_names.MARK + name: tensor for name, tensor in tensors.items()}
    if layout == "diffusers_unet":
        return dict(tensors)
    names = ldm_names.unet_names(unet, layout)
    return {ldm_names.UNET_PREFIX + names[name]: tensor for name, tensor in tensors.items()}


def components_in(folder: Path, dtype: torch.dtype, variant: str | None = None) -> dict[str, torch.Tensor]:
    """The VAE and text encoders of a diffusers folder, or of a whole checkpoint, by LDM's names.

    Raises ValueError for a folder without a VAE or without a text encoder, and for a file with a UNet alone.
    """
    if folder.is_file():
        if not checkpoints.is_pipeline(folder):
            raise ValueError(f"{folder} holds neither a VAE nor a text encoder; name a whole checkpoint, or none.")
        tensors = checkpoints.read_tensors(folder, lambda name: name.startswith(checkpoints.BESIDE_THE_UNET))
        return _cast(tensors, dtype, str(folder))
    encoders = [name for name in ("text_encoder", "text_encoder_2") if (folder / name / "config.json").exists()]
    if not encoders or not (folder / "vae" / "config.json").exists():
        raise ValueError(f"{folder} is not a diffusers pipeline's folder: it needs a vae and a text_encoder.")
    configs = [read_json(folder / name / "config.json") for name in encoders]
    if not all(isinstance(config, dict) for config in configs):
        raise ValueError(f"{folder} is not a diffusers pipeline's folder: a text encoder's config is no JSON object.")
    vae, *texts = (_weights(folder / name, dtype, variant) for name in ("vae", *encoders))
    try:
        return ldm_names.checkpoint({}, vae, list(zip(configs, texts, strict=True)))
    except Exception:  # names that are no VAE's and no text encoder's
        raise ValueError(f"{folder} holds no VAE and text encoder that have names in LDM's checkpoints.") from None


def _weights(folder: Path, dtype: torch.dtype, variant: str | None) -> dict[str, torch.Tensor]:
    """The tensors of a part's folder, in the variant where it has that one."""
    tensors: dict[str, torch.Tensor] = {}
    for file in checkpoints.weight_files(folder, checkpoints.variant_or_plain(folder, variant)):
        tensors |= checkpoints.read_tensors(file)
    return _cast(tensors, dtype, str(folder))


def _cast(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, where: str) -> dict[str, torch.Tensor]:
    """The tensors in a dtype; raises ValueError for NaN or infinite numbers."""
    cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    checkpoints.check_finite(cast, where)
    return cast


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], force: bool = False) -> None:
    """Write a safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    with whole_file(path, force, sum(tensor.nbytes for tensor in tensors.values())) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata))


def stamp(folder: Path, metadata: Mapping[str, str]) -> None:
    """Put metadata into every safetensors file of a folder that is being written."""
    from safetensors.torch import load_file, save_file

    for file in folder.glob("*.safetensors"):
        stamped = file.with_suffix(".stamped")  # the tensors are mapped from the file itself
        save_file(load_file(file), stamped, {"format": "pt", **metadata})
        stamped.replace(file)


# ---------------------------------------------------------------------------------------------- metadata


def provenance(family: Family, unet: nn.Module) -> dict[str, str]:
    """Where a UNet comes from, for the metadata of an exported file: hash, plan, base model and licence."""
    built = build_result(family)
    facts = {
        "asdm.source_sha256": weights_sha256(unet),
        "asdm.base_model": built.family if built else family.name,
        "asdm.license": next(_licences(family, built), "unknown; ask the publisher of the base model"),
    }
    return facts | ({"asdm.plan": built.name, "asdm.plan_sha256": built.plan_sha256} if built else {})


def build_result(family: Family) -> BuildResult | None:
    """The record of how a student's folder was built, where there is one."""
    file = family.folder / "build.json" if family.folder else None
    return BuildResult.load(file) if file and file.exists() else None


def _licences(family: Family, built: BuildResult | None) -> Iterator[str]:
    """The licence that a model card beside the UNet or its teacher states, else the teacher's published one."""
    from asdm.models.families import load_family

    yield from _licence_in(family.folder)
    try:
        teacher = load_family(built.family) if built else family
    except ValueError:  # the teacher's folder is gone
        return
    yield from _licence_in(teacher.folder)
    if teacher.licence:
        yield teacher.licence


def _licence_in(folder: Path | None) -> Iterator[str]:
    card = folder / "README.md" if folder else None
    if card and card.exists():
        for line in card.read_text(encoding="utf-8", errors="replace").split("---")[1:2] or [""]:
            yield from (one.partition(":")[2].strip() for one in line.splitlines() if one.startswith("license:"))


def metadata(
    family: Family, unet: Any, layout: str, architecture: str | None, lora: Mapping[str, str]
) -> dict[str, str]:
    """The metadata of a single file: ours, and the fields of ModelSpec that other programs show."""
    facts = provenance(family, unet)
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    v = family.prediction_type == "v_prediction"
    spec = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": f"{facts.get('asdm.plan', 'UNet')} of {facts['asdm.base_model']}",
        "modelspec.architecture": ARCHITECTURES.get(str(architecture), "unet2dconditionmodel"),
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.license": facts["asdm.license"],
        "modelspec.prediction_type": "v" if v else "epsilon",
        "modelspec.resolution": f"{family.size}x{family.size}",
    }
    return {
        "format": "pt", **facts, **spec, "asdm.layout": layout, "asdm.unet_class": type(unet).__name__,
        "asdm.unet_config": json.dumps(config, allow_nan=False),
        "asdm.lora_names": json.dumps(dict(lora), allow_nan=False),
        checkpoints.ZERO_TERMINAL_SNR: str(family.zero_terminal_snr).lower(),
        "asdm.vae_factor": str(family.vae_factor), "asdm.tokens": str(family.tokens),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- LoRA


def convert_lora(family: Family, file: Path, output: Path, layout: str, force: bool = False) -> ExportResult:
    """Write a teacher's LoRA with the names of a student's folder, in the naming that it has.

    Raises ValueError for a file that is no LoRA of the teacher, one that was converted already, and a folder that is
    not a student's.
    """
    done = surgery_of(family)
    if not file.is_file() or file.suffix != ".safetensors":
        raise ValueError(f"{file} is not a .safetensors file; name a LoRA.")
    facts, weights = checkpoints.read_header(file).metadata, checkpoints.read_tensors(file)
    checkpoints.check_finite(weights, f"the LoRA {file}")
    if loras.CONVERTED in facts:
        raise ValueError(f"{file} was converted already, for {facts[loras.CONVERTED]}; name the original.")
    if not any("lora" in name for name in weights):
        raise ValueError(f"{file} is not a LoRA: none of its names has 'lora' in it.")
    fitted = _fitted(file, weights, done, layout)
    own = {loras.CONVERTED: family.name, "asdm.source_sha256": sha256_of_file(file), "asdm.base_model": family.name}
    write(output, fitted.weights, {"format": "pt"} | facts | own, force)
    return ExportResult(
        family=family.name, to="lora", dtype=str(next(iter(weights.values())).dtype).removeprefix("torch."),
        params=sum(tensor.numel() for tensor in fitted.weights.values()), left_out=fitted.left_out,
        source_sha256=own["asdm.source_sha256"],
    )  # fmt: skip


def fuse_lora(unet: nn.Module, family: Family, specs: Sequence[str], teacher_config: Mapping[str, Any]) -> None:
    """Add LoRAs (`FILE[:SCALE]`) to the weights of a student of `family`: its teacher's, and converted ones.

    Raises ValueError for a family that is not a student's, and for a LoRA of another model.
    """
    done = surgery_of(family)
    for spec in specs:
        gone, converted = 0, loras.CONVERTED in checkpoints.read_header(loras.file_of(spec)).metadata
        lora = loras.read(spec, family.unet if converted else teacher_config)
        if not converted:
            fitted = _fitted(lora.name, lora.weights, done)
            lora, gone = lora._replace(weights=fitted.weights), len(fitted.left_out)
        replaced = loras.fuse(unet, lora, "unet", some=True)  # what the student's replacements have no weight of
        if count := gone + len(replaced):
            console.say_once(f"{lora.name}: the student has no place for {count} of its modules.")


def _fitted(file: Path | str, weights: Mapping[str, Any], done: Surgery, layout: str = "comfyui") -> FittedLora:
    try:
        return fit_lora(weights, done, layout)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def surgery_of(family: Family) -> Surgery:
    """What was done to the teacher of a student's folder or file; raises ValueError where it is not a student's."""
    if built := build_result(family):
        return built
    unet = meta_unet(family)
    if applied := getattr(unet, "applied", None):
        return applied
    if family.file and (names := checkpoints.read_header(family.file).metadata.get("asdm.lora_names")):
        student_of = _lora_names(names, family.file)
        teacher_of = {student: teacher for teacher, student in student_of.items() if student}
        parts = [*(name for name, _ in blocks.iter_blocks(unet)), *(part.fqn for part in blocks.iter_parts(unet))]
        removed = tuple(teacher for teacher, student in student_of.items() if not student)
        return Applied({name: teacher_of.get(name, name) for name in parts}, removed, {})
    raise ValueError(f"{family.name} is not a student: it has neither build.json nor edits in its config.")


def _lora_names(text: str, file: Path) -> dict[str, str]:
    """The teacher's units whose name changes, of an exported file's metadata."""
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{file} is damaged: its asdm.lora_names are not names by names.")
    return names

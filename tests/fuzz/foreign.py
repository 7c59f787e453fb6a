"""Files that other programs wrote and options name: LoRAs, VAEs, judges, checkpoints of one file, images."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save
from transformers import CLIPConfig, CLIPModel

from asdm.models import checkpoints, drawing, encoders, lora, networks, recognition, single_file
from asdm.models.components import components_of
from asdm.models.family import Family, from_folder
from asdm.models.loading import load_unet, weights_sha256
from asdm.models.pipeline import pipeline
from asdm.models.settings import GenerateSettings, PictureSetup
from asdm.models.units import UnitLibrary
from asdm.records.units import Units
from asdm.utils.pictures import read_picture
from tests import single_files
from tests.fuzz.kind import Kind, file_of, of_tensors
from tests.fuzz.mutations import as_json

BEFORE = Path(__file__).parents[1] / "fixtures" / "before_the_move"
WEIGHTS = "diffusion_pytorch_model.safetensors"
QUERY = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
VGG = networks.SHIPPED / "vgg"


def prepare(root: Path) -> None:
    """Put all the files into a folder that has the teacher's already."""
    shutil.copytree(root / "teacher" / "vae", root / "own_vae")
    shutil.copytree(VGG, root / "vgg")
    files = {"style": lora_bytes, "sparkle": token_bytes, "whole": whole_bytes, "exported": exported_bytes}
    for name, content in files.items():
        (root / f"{name}.safetensors").write_bytes(content())
    (root / "sharded").mkdir()
    shutil.copy(root / "teacher" / "unet" / "config.json", root / "sharded")
    shutil.copy(root / "teacher" / "unet" / WEIGHTS, root / "sharded" / SHARD)
    _write_judge(root / "judge")
    _write_control(root / "control")
    (root / "units").mkdir()
    (root / "units" / "units.json").write_bytes(as_json(UNITS | {"teacher_sha256": weights_sha256(teacher_unet())}))


@cache
def teacher() -> Family:
    return from_folder(BEFORE / "teacher")


@cache
def teacher_unet() -> Any:
    return load_unet(teacher(), str(BEFORE / "teacher"))


@cache
def text_encoder() -> Any:
    return components_of(teacher())[0].module


# ---------------------------------------------------------------------------------------------- the files


@cache
def lora_bytes() -> bytes:
    """kohya's names: one pair of rank 2 with its alpha."""
    stem = f"lora_unet_{QUERY}"
    pair = {"lora_down.weight": torch.ones(2, 4), "lora_up.weight": torch.ones(4, 2), "alpha": torch.tensor(1.0)}
    return save({f"{stem}.{name}": tensor for name, tensor in pair.items()})


@cache
def token_bytes() -> bytes:
    return save({"emb_params": torch.ones(2, 8)})


@cache
def whole_bytes() -> bytes:
    """A whole Stable Diffusion in LDM's names."""
    return save({name: t.contiguous() for name, t in single_files.ldm(BEFORE / "teacher", blocks=3).items()})


@cache
def exported_bytes() -> bytes:
    """A UNet as `asdm export` writes it."""
    facts = single_file.metadata(teacher(), teacher_unet(), "diffusers_unet", None, {})
    return save({name: t.contiguous() for name, t in teacher_unet().state_dict().items()}, facts)


SHARD = "diffusion_pytorch_model-00001-of-00001.safetensors"
INDEX = {"metadata": {"total_size": 4}, "weight_map": dict.fromkeys(("conv_in.weight", "conv_in.bias"), SHARD)}


def _write_judge(folder: Path) -> None:
    """A tiny CLIP with the teacher's tokenizer."""
    sides = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = sides | {"image_size": 16, "patch_size": 8}
    text = sides | {"vocab_size": 514, "max_position_embeddings": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    for file in (BEFORE / "teacher" / "tokenizer").iterdir():
        shutil.copy(file, folder)


def _write_control(folder: Path) -> None:
    from diffusers import ControlNetModel

    control = ControlNetModel.from_unet(teacher_unet(), conditioning_embedding_out_channels=(4, 4, 4))
    control.save_pretrained(folder)


UNITS = {
    "schema": "asdm.units/1", "created_utc": "", "command": "", "family": "teacher", "data": "emoji", "split": "train",
    "calibration": 8, "steps": 0, "batch": 2, "learning_rate": 1e-4, "seed": 0, "environment": {},
    "units": [{
        "edit": {"op": "replace_unit", "unit": "down_blocks.0.attentions.0", "with": "gri_attention"},
        "sha256": "a" * 64, "from_weights": 0.5, "fitted": 0.4,
    }],
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- what commands do


def use_lora(_: Path, one: lora.Lora) -> None:
    lora.fuse(load_unet(teacher(), str(BEFORE / "teacher")), one, "unet")


def read_token(root: Path) -> None:
    pipe = SimpleNamespace(text_encoder=text_encoder(), tokenizer=None, load_textual_inversion=lambda *_, **__: None)
    encoders.add_tokens(pipe, root / "sparkle.safetensors")


def use_token(root: Path, _: Any) -> None:
    setup = PictureSetup(weights=str(root / "teacher"), textual_inversion=[str(root / "sparkle.safetensors")])
    pipeline(teacher(), None, setup)


def use_vae(root: Path, _: Any) -> None:
    encoders.load_vae(str(root / "own_vae"), teacher(), PictureSetup())


def read_whole(root: Path) -> None:
    path = root / "whole.safetensors"
    checkpoints.check_unet_in(checkpoints.read_header(path), path)


def use_whole(root: Path, _: Any) -> None:
    path = root / "whole.safetensors"
    family = recognition.from_file(path, teacher())
    pipeline(family, load_unet(family, str(path)), PictureSetup(weights=str(path)))
    single_file.components_in(path, torch.float32)


def read_exported(root: Path) -> Family | None:
    path = root / "exported.safetensors"
    return recognition._exported(checkpoints.read_header(path), path, None)


def use_exported(root: Path, _: Any) -> None:
    family = recognition.from_file(root / "exported.safetensors")
    load_unet(family, str(root / "exported.safetensors"))
    if checkpoints.read_header(root / "exported.safetensors").metadata.get("asdm.lora_names"):
        single_file.surgery_of(family)


def read_control(root: Path) -> Any:
    drawing.check_control(root / "control")


def use_control(root: Path, _: Any) -> None:
    settings = GenerateSettings(control=str(root / "control"), control_image="a.png")
    drawing._controlnet(SimpleNamespace(unet=teacher_unet()), teacher(), settings, None)


def use_judge(root: Path, _: Any) -> None:
    networks.ClipJudge(str(root / "judge")).text_embedding(["a heart"])


def use_parts(root: Path, _: Any) -> None:
    pipeline(from_folder(root / "teacher"), None, PictureSetup(weights=str(root / "teacher")))


def use_units(root: Path, _: Any) -> None:
    UnitLibrary(root / "units", teacher_unet())


def raw_of(path: Path) -> Any:
    return cache(path.read_bytes)


IMAGE = BEFORE / "photos" / "1.png"

FOREIGN = (
    of_tensors("lora", "style.safetensors", lora_bytes,
               lambda root: lora.read(str(root / "style.safetensors"), teacher().unet), use_lora),
    of_tensors("textual inversion", "sparkle.safetensors", token_bytes, read_token, use_token),
    of_tensors("single file", "whole.safetensors", whole_bytes, read_whole, use_whole),
    of_tensors("exported file", "exported.safetensors", exported_bytes,
               read_exported, use_exported),
    of_tensors("vgg weights", "vgg/model.safetensors", raw_of(VGG / "model.safetensors"),
               lambda root: networks.Vgg.load(root / "vgg"), lambda *_: None),
    of_tensors("vae weights", f"teacher/vae/{WEIGHTS}", raw_of(BEFORE / "teacher" / "vae" / WEIGHTS),
               lambda root: single_file.components_in(root / "teacher", torch.float32), use_parts),
    of_tensors("text encoder weights", "teacher/text_encoder/model.safetensors",
               raw_of(BEFORE / "teacher" / "text_encoder" / "model.safetensors"),
               lambda root: single_file.components_in(root / "teacher", torch.float32), use_parts),
    Kind("vgg config", (vgg := "vgg/config.json"), file_of(vgg), lambda root: networks.Vgg.load(root / "vgg")),
    Kind("own vae config", (vae := "own_vae/config.json"), file_of(vae),
         lambda root: encoders.check_vae(root / "own_vae"), use_vae),
    Kind("judge config", (judge := "judge/config.json"), file_of(judge),
         lambda root: networks.check_clip_config(root / judge), use_judge),
    Kind("control config", (control := "control/config.json"), file_of(control), read_control, use_control),
    Kind("weights index", "sharded/diffusion_pytorch_model.safetensors.index.json", lambda _: INDEX,
         lambda root: checkpoints.weight_files(root / "sharded")),
    Kind("units", (units := "units/units.json"), file_of(units), lambda root: Units.load(root / units), use_units),
    Kind("image", "image.png", lambda _: [], lambda root: read_picture(root / "image.png"),
         encode=lambda _: IMAGE.read_bytes()),
)  # fmt: skip

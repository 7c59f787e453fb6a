"""What other programs make of a file's names and shapes, as their public sources say (2026), to judge our claims by.

ComfyUI: comfy/model_detection.py, comfy/supported_models.py, ldm/modules/diffusionmodules/openaimodel.py.
stable-diffusion.cpp: src/model_loader.cpp (get_sd_version), src/model/diffusion/unet.hpp (UNetConfig, UnetModelBlock).
diffusers: its own converter is called. InvokeAI: its probe of main checkpoints.
"""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from asdm.models import ldm_names

PREFIX = "model.diffusion_model."
Shapes = dict[str, tuple[int, ...]]  # without the prefix


def judged(loaded: bool, recognised: bool = True) -> str:
    return "refuses" if not recognised else "loads" if loaded else "wrong"


def shapes_of(unet: torch.nn.Module, layout: str = "comfyui") -> Shapes:
    """What our file of a UNet holds in one of LDM's layouts."""
    names, tensors = ldm_names.unet_names(unet, layout), unet.state_dict()
    return {names[name]: tuple(tensor.shape) for name, tensor in tensors.items()}


# ---------------------------------------------------------------------------------------------- LDM's modules


def res(name: str, cin: int, cout: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A ResNet's tensors that tell its place: the first convolution, and the shortcut where channels change."""
    yield f"{name}.in_layers.2.weight", (cout, cin, 3, 3)
    yield f"{name}.out_layers.3.weight", (cout, cout, 3, 3)
    if cin != cout:
        yield f"{name}.skip_connection.weight", (cout, cin, 1, 1)


def transformer(name: str, ch: int, depth: int, context: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for i in range(depth):
        yield f"{name}.transformer_blocks.{i}.attn1.to_q.weight", (ch, ch)
        yield f"{name}.transformer_blocks.{i}.attn2.to_k.weight", (ch, context)


def telling(shapes: Shapes) -> Shapes:
    """The tensors of a file that `res`, `transformer` and the samplers of a builder name."""
    ends = ("in_layers.2.weight", "out_layers.3.weight", "skip_connection.weight", "attn1.to_q.weight",
            "attn2.to_k.weight", ".op.weight", ".conv.weight")  # fmt: skip
    return {name: shape for name, shape in shapes.items() if name.endswith(ends)}


# ---------------------------------------------------------------------------------------------- ComfyUI

SDXL_DEPTHS = [[0, 0, 2, 2, 10, 10], [0, 0, 2, 2, 4, 4], [0, 0, 1, 1, 2, 2], [0, 2, 5], [0, 2, 6]]


def count_blocks(names: Any, prefix: str) -> int:
    n = 0
    while any(name.startswith(prefix.format(n)) for name in names):
        n += 1
    return n


def comfyui(shapes: Shapes) -> str:
    found = comfyui_config(shapes)
    common = found["model_channels"] == 320
    linear, adm, context = found["linear"], found["adm"], found["context"]
    sd15 = common and (context, linear, adm) == (768, False, None)
    sd20 = common and (context, linear, adm) == (1024, True, None)
    sdxl = common and (context, linear, adm) == (2048, True, 2816) and found["depth"] in SDXL_DEPTHS
    if not (sd15 or sd20 or sdxl):
        return "refuses"
    return judged(dict(comfyui_modules(found)) == telling(shapes))


def comfyui_config(shapes: Shapes) -> dict[str, Any]:
    def attention(prefix: str) -> tuple[int, int, bool] | None:
        stem = f"{prefix}1.transformer_blocks."
        if not any(name.startswith(stem) for name in shapes):
            return None
        linear = len(shapes[f"{prefix}1.proj_in.weight"]) == 2
        return count_blocks(shapes, stem + "{}."), shapes[f"{stem}0.attn2.to_k.weight"][1], linear

    channels = shapes["input_blocks.0.0.weight"][0]
    res_blocks, mult, depth, depth_out = [], [], [], []
    context, linear, last_res, last_mult = None, False, 0, 0
    total = count_blocks(shapes, "input_blocks.{}.")
    for count in range(total):
        own, opposite = f"input_blocks.{count}.", f"output_blocks.{total - count - 1}."
        out = attention(opposite)
        if f"{own}0.op.weight" in shapes:
            res_blocks.append(last_res)
            mult.append(last_mult)
            last_res = last_mult = 0
            depth_out.append(out[0] if out else 0)
            continue
        if f"{own}0.in_layers.0.weight" in shapes:
            last_res += 1
            last_mult = shapes[f"{own}0.out_layers.3.weight"][0] // channels
            at = attention(own)
            depth.append(at[0] if at else 0)
            if at and context is None:
                _, context, linear = at
        if f"{opposite}0.in_layers.0.weight" in shapes:
            depth_out.append(out[0] if out else 0)
    middle = -2
    if "middle_block.1.proj_in.weight" in shapes:
        middle = count_blocks(shapes, "middle_block.1.transformer_blocks.{}.")
    elif "middle_block.0.in_layers.0.weight" in shapes:
        middle = -1
    return {
        "model_channels": channels, "res_blocks": [*res_blocks, last_res], "mult": [*mult, last_mult], "depth": depth,
        "depth_out": depth_out, "middle": middle, "context": context, "linear": linear,
        "adm": shapes.get("label_emb.0.0.weight", (0, None))[1],
    }  # fmt: skip


def comfyui_modules(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    base, context = config["model_channels"], config["context"]
    depth, depth_out = list(config["depth"]), list(config["depth_out"])
    ch, place, channels = base, 1, [base]
    for level, mult in enumerate(config["mult"]):
        for _ in range(config["res_blocks"][level]):
            yield from res(f"input_blocks.{place}.0", ch, mult * base)
            ch = mult * base
            yield from transformer(f"input_blocks.{place}.1", ch, depth.pop(0), context)
            channels.append(ch)
            place += 1
        if level != len(config["mult"]) - 1:
            yield f"input_blocks.{place}.0.op.weight", (ch, ch, 3, 3)
            channels.append(ch)
            place += 1
    if config["middle"] >= -1:
        yield from res("middle_block.0", ch, ch)
    if config["middle"] >= 0:
        yield from transformer("middle_block.1", ch, config["middle"], context)
        yield from res("middle_block.2", ch, ch)
    place = 0
    for level, mult in list(enumerate(config["mult"]))[::-1]:
        for i in range(config["res_blocks"][level] + 1):
            yield from res(f"output_blocks.{place}.0", ch + channels.pop(), base * mult)
            ch = base * mult
            deep = depth_out.pop() if depth_out else 0
            yield from transformer(f"output_blocks.{place}.1", ch, deep, context)
            if level and i == config["res_blocks"][level]:
                yield f"output_blocks.{place}.{2 if deep else 1}.conv.weight", (ch, ch, 3, 3)
            place += 1


# ---------------------------------------------------------------------------------------------- stable-diffusion.cpp


def sdcpp(shapes: Shapes, text_width: int | None) -> str:
    """`text_width` is that of the token embedding in the file; None: two text encoders."""
    has_middle_1 = any(name.startswith("middle_block.1.") for name in shapes)
    has_311 = any(name.startswith("output_blocks.3.1.transformer_blocks.1") for name in shapes)
    has_71 = any(name.startswith("output_blocks.7.1") for name in shapes)
    if text_width is None:
        version = "XL" if has_middle_1 else "SSD1B" if has_311 else "VEGA"
    elif text_width == 768:
        version = "SD1" if has_middle_1 else "SD1_TINY" if has_71 else "SDXS"
    elif text_width == 1024:
        version = "SD2" if has_middle_1 else "SD2_TINY"
    else:
        return "refuses"
    wanted, own = dict(sdcpp_modules(version, text_width or 2048)), telling(shapes)
    if any(own.get(name) != shape for name, shape in wanted.items()):
        return "refuses"
    return judged(own == wanted)


def sdcpp_modules(version: str, context: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    xl, tiny = version in ("XL", "SSD1B", "VEGA"), version in ("SD1_TINY", "SD2_TINY", "SDXS")
    n_res, mults = (1 if tiny else 2), ([1, 2, 4] if tiny or xl else [1, 2, 4, 4])
    attention_at = [4, 2] if xl or version == "SDXS" else [4, 2, 1]
    depth = {"XL": [1, 2, 10], "SSD1B": [1, 2, 10], "VEGA": [1, 1, 2]}.get(version, [1, 1, 1, 1])
    ch, ds, place, channels = 320, 1, 0, [320]
    for i, mult in enumerate(mults):
        for _ in range(n_res):
            place += 1
            yield from res(f"input_blocks.{place}.0", ch, mult * 320)
            ch = mult * 320
            if ds in attention_at:
                deep = 4 if version == "SSD1B" and i == 2 else depth[i]
                yield from transformer(f"input_blocks.{place}.1", ch, deep, context)
            channels.append(ch)
            place += tiny
        if i != len(mults) - 1:
            place += 1
            yield f"input_blocks.{place}.0.op.weight", (ch, ch, 3, 3)
            channels.append(ch)
            ds *= 2
    if not tiny:
        yield from res("middle_block.0", ch, ch)
        if version not in ("SSD1B", "VEGA"):
            yield from transformer("middle_block.1", ch, depth[-1], context)
            yield from res("middle_block.2", ch, ch)
    place = 0
    for i in range(len(mults) - 1, -1, -1):
        for j in range(n_res + 1):
            yield from res(f"output_blocks.{place}.0", ch + channels.pop(), mults[i] * 320)
            ch, sample_at = mults[i] * 320, 1
            if ds in attention_at:
                deep = depth[i]
                if version == "SSD1B":
                    deep = 4 if i == 2 and j in (0, 1) else 1 if i == 1 and j in (1, 2) else deep
                yield from transformer(f"output_blocks.{place}.1", ch, deep, context)
                sample_at += 1
            if i > 0 and j == n_res:
                if tiny:
                    place += 1
                    sample_at = 1 if place == 2 else sample_at
                yield f"output_blocks.{place}.{sample_at}.conv.weight", (ch, ch, 3, 3)
                ds //= 2
            place += 1


# ---------------------------------------------------------------------------------------------- the others


def diffusers(shapes: Shapes, config: dict[str, Any]) -> str:
    """The converter itself, with the student's own config, on the meta device."""
    config = {key: value for key, value in config.items() if not key.startswith("_") and key != "edits"}
    with torch.device("meta"):
        wanted = {k: tuple(v.shape) for k, v in UNet2DConditionModel.from_config(config).state_dict().items()}
        file = {PREFIX + name: torch.empty(shape) for name, shape in shapes.items()}
    try:
        converted = convert_ldm_unet_checkpoint(file, config)
    except (TypeError, KeyError):
        return "refuses"
    return judged(True, {k: tuple(v.shape) for k, v in converted.items() if v is not None} == wanted)


def invokeai(shapes: Shapes, stock: dict[int, Shapes]) -> str:
    """Its probe; what it recognises it builds as published. `stock`: published files by the width of their text."""
    for place, widths in ((2, (768, 1024)), (4, (2048,))):
        width = shapes.get(f"input_blocks.{place}.1.transformer_blocks.0.attn2.to_k.weight", (0, 0))[1]
        if width in widths:
            return judged(shapes == stock[width])
    return "refuses"


# ---------------------------------------------------------------------------------------------- all of them


def verdicts(
    shapes: Shapes, family: str, stock: dict[int, Shapes], config: dict[str, Any] | None = None
) -> dict[str, str]:
    """What each program does with a file of these shapes; diffusers where the UNet's `config` is given."""
    found = {
        "ComfyUI": comfyui(shapes),
        "stable-diffusion.cpp": sdcpp(shapes, {"sd15": 768, "sd21_base": 1024}.get(family)),
        "InvokeAI": invokeai(shapes, stock),
        "AUTOMATIC1111": judged(shapes in stock.values()),
    }
    return found | ({"diffusers": diffusers(shapes, config)} if config is not None else {})

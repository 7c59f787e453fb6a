"""Which programs load a UNet's single file, which refuse it, and which would run it as something that it is not.

What each program recognises was read in its public source in 2026: ComfyUI's `detect_unet_config` and supported models,
stable-diffusion.cpp's `ModelLoader::get_sd_version` and `UNetConfig`, diffusers' `from_single_file` with the student's
own config, the configs that AUTOMATIC1111's web UI ships, and InvokeAI's probe of main checkpoints. Needs no torch.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from asdm.plan.legality import ResolvedPlan
from asdm.plan.topology import Topology
from asdm.records.build import LoaderClaim

TITLES = {"comfyui": "ComfyUI", "sdcpp": "stable-diffusion.cpp", "diffusers": "diffusers"}
LAYOUTS = ("comfyui", "sdcpp", "diffusers_unet")
Verdict = Literal["loads", "refuses", "wrong"]

# What LDM's code takes for granted, and a config of diffusers may say otherwise.
TAKEN_FOR_GRANTED: dict[str, Any] = {
    "norm_num_groups": 32, "norm_eps": 1e-5, "act_fn": "silu", "resnet_time_scale_shift": "default",
    "only_cross_attention": False, "dual_cross_attention": False, "attention_type": "default",
    "time_cond_proj_dim": None, "encoder_hid_dim": None, "encoder_hid_dim_type": None, "num_class_embeds": None,
    "time_embedding_type": "positional", "timestep_post_act": None, "center_input_sample": False,
    "flip_sin_to_cos": True, "freq_shift": 0, "mid_block_scale_factor": 1, "conv_in_kernel": 3, "conv_out_kernel": 3,
    "class_embed_type": None, "cross_attention_norm": None, "resnet_skip_time_act": False, "resnet_out_scale_factor": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A layer of a block: whether its ResNet is there, and how many blocks its Transformer has (0: none)."""

    depth: int
    resnet: bool = True


Block = tuple[Layer, ...]


@dataclass(frozen=True)
class Structure:
    """What a loader can see of a UNet, and what it cannot: replaced units, and settings that LDM takes for granted."""

    channels: tuple[int, ...]  # of each level
    heads: tuple[int, ...]  # of each level
    in_channels: int
    context: int
    linear: bool
    added: int | None  # width of what is embedded beside the timestep
    down: tuple[Block, ...]
    mid: tuple[int, int]  # ResNets, blocks of its Transformer
    up: tuple[Block, ...]
    plain: bool = True  # only whole layers and blocks were removed
    whole: bool = True  # nothing was removed
    replaced: tuple[str, ...] = ()
    unusual: tuple[str, ...] = ()

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(itertools.chain(*self.down, *self.up))

    @property
    def family(self) -> str | None:
        """SD 1, SD 2 or SDXL by the widths that every loader looks at, or None."""
        if self.channels[0] != 320:
            return None
        widths = (self.context, self.linear, self.added)
        return {(768, False, None): "SD 1", (1024, True, None): "SD 2", (2048, True, 2816): "SDXL"}.get(widths)


def structure_of(config: Mapping[str, Any], plan: ResolvedPlan) -> Structure:
    """The structure of what a plan leaves of the UNet of a diffusers config; the plan may have no edits.

    Raises ValueError for block types that LDM does not have.
    """
    topology, n = plan.topology, len(config["block_out_channels"])
    ups = [block for block in topology.up_blocks if block not in plan.removed_blocks]
    downs = [block for block in topology.down_blocks if block not in plan.removed_blocks]
    depth = per_block(config.get("transformer_layers_per_block", 1), n)
    up_depth = per_block(config.get("reverse_transformer_layers_per_block") or depth[::-1], n)
    left = {u.fqn: u for u in topology.units if u.fqn not in plan.gone}
    mid = [unit for unit in left.values() if unit.block == "mid_block"]
    heads = per_block(config.get("num_attention_heads") or config.get("attention_head_dim", 8), n)[: len(downs)]
    width = config.get("cross_attention_dim", 1280)
    text_time = config.get("addition_embed_type") == "text_time"
    return Structure(
        channels=tuple(config["block_out_channels"][: len(downs)]),
        heads=tuple(heads),
        in_channels=config.get("in_channels", 4),
        context=width[0] if isinstance(width, list | tuple) else width,
        linear=bool(config.get("use_linear_projection", False)),
        added=config.get("projection_class_embeddings_input_dim") if text_time else None,
        down=tuple(_block(topology, plan, left, block, depth[topology.down_blocks.index(block)]) for block in downs),
        mid=(sum(u.kind == "resnet" for u in mid), _last(depth[-1]) if any(u.kind != "resnet" for u in mid) else 0),
        up=tuple(_block(topology, plan, left, block, up_depth[topology.up_blocks.index(block)]) for block in ups),
        plain=not plan.removed_units and not plan.replaced,
        whole=not plan.gone,
        replaced=tuple(sorted(set(plan.replaced.values()))),
        unusual=tuple(k for k, usual in TAKEN_FOR_GRANTED.items() if config.get(k, usual) not in (usual, [usual] * n)),
    )


def per_block(value: Any, n: int) -> list[Any]:
    """A config's value for each of `n` blocks."""
    return list(value) if isinstance(value, list | tuple) else [value] * n


def _block(topology: Topology, plan: ResolvedPlan, left: Mapping[str, Any], block: str, depth: Any) -> Block:
    def layer(index: int) -> Layer:
        kinds = {unit.kind for unit in topology.layer_units(block, index) if unit.fqn in left}
        deep = depth[index] if isinstance(depth, list | tuple) else depth
        return Layer(deep if "transformer" in kinds else 0, "resnet" in kinds)

    return tuple(layer(index) for index in topology.layers(block) if (block, index) not in plan.removed_layers)


def _last(depth: Any) -> int:
    return int(depth[-1] if isinstance(depth, list | tuple) else depth)


# ---------------------------------------------------------------------------------------------- modules


def modules(structure: Structure, holes: bool = False) -> dict[str, tuple[int, ...]]:
    """LDM's names of a structure's modules with what their tensors' shapes depend on.

    A ResNet: channels in and out; a Transformer: channels, blocks; a sampler: channels. `holes`: three places a block.
    """
    sizes: dict[str, tuple[int, ...]] = {}
    hidden, skips, place = structure.channels[0], [structure.channels[0]], 1
    for level, (block, channels) in enumerate(zip(structure.down, structure.channels, strict=True)):
        place = 1 + 3 * level if holes else place
        for layer in block:
            sizes |= _layer(f"input_blocks.{place}", layer, hidden, channels)
            hidden, place = channels, place + 1
            skips.append(hidden)
        if level < len(structure.down) - 1:
            place = 3 + 3 * level if holes else place
            sizes[f"input_blocks.{place}.0.op"] = (hidden,)
            place += 1
            skips.append(hidden)
    sizes |= _middle(structure, hidden)
    place = 0
    for level, (block, channels) in enumerate(zip(structure.up, structure.channels[::-1], strict=True)):
        place = 3 * level if holes else place
        for layer in block:
            sizes |= _layer(f"output_blocks.{place}", layer, hidden + skips.pop(), channels)
            hidden, place = channels, place + 1
        if level < len(structure.up) - 1:
            if holes and len(block) < 3:
                sizes[f"output_blocks.{3 * level + 2}.{2 if level else 1}.conv"] = (hidden,)
            else:
                sizes[f"output_blocks.{place - 1}.{2 if block[-1].depth else 1}.conv"] = (hidden,)
    return sizes


def _layer(name: str, layer: Layer, inside: int, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    if layer.resnet:
        yield f"{name}.0", (inside, channels)
    if layer.depth:
        yield f"{name}.1", (channels, layer.depth)


def _middle(structure: Structure, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    resnets, depth = structure.mid
    for i in range(resnets):
        yield f"middle_block.{2 * i}", (channels, channels)
    if depth:
        yield "middle_block.1", (channels, depth)


def covers(ours: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a file with our modules has every tensor of theirs, in the shape that they want."""
    return all(
        name in ours and ours[name][0] == shape[0] and (ours[name] == shape or _deeper(name, ours[name], shape))
        for name, shape in theirs.items()
    )


def _deeper(name: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    is_transformer = name.endswith(".1") and len(theirs) == 2
    return is_transformer and ours[1] >= theirs[1]


# ---------------------------------------------------------------------------------------------- known structures


def _known(family: str, depths: Sequence[Any], layers: int = 2, mid: tuple[int, int] = (2, 1), **changes: Any) -> Any:
    """A published structure: depths of the Transformers of each level, for the input side and the output side."""
    context, linear, added = {"SD 1": (768, False, None), "SD 2": (1024, True, None), "SDXL": (2048, True, 2816)}[
        family
    ]
    channels = (320, 640, 1280, 1280)[: len(depths)]
    down = tuple(tuple(map(Layer, per_block(d, layers))) for d in depths)
    up = tuple(tuple(map(Layer, per_block(d, layers + 1))) for d in changes.get("up", tuple(depths)[::-1]))
    heads = tuple(8 if family == "SD 1" else c // 64 for c in channels)
    return Structure(channels, heads, 4, context, linear, added, down, mid, up)


STOCK = {
    "SD 1": _known("SD 1", (1, 1, 1, 0)),
    "SD 2": _known("SD 2", (1, 1, 1, 0)),
    "SDXL": _known("SDXL", (0, 2, 10), mid=(2, 10)),
}
SSD_1B = _known("SDXL", (0, 2, 4), mid=(1, 0), up=((4, 4, 10), (2, 1, 1), 0))
VEGA = _known("SDXL", (0, 1, 2), mid=(1, 0))
TINY = {family: _known(family, (1, 1, 1), layers=1, mid=(0, 0)) for family in ("SD 1", "SD 2")}
SDXS = _known("SD 1", (0, 1, 1), layers=1, mid=(0, 0))
# The input sides of SDXL that ComfyUI knows: SDXL, SSD-1B, Vega, KOALA-700M and KOALA-1B.
COMFYUI_SDXL = ((0, 0, 2, 2, 10, 10), (0, 0, 2, 2, 4, 4), (0, 0, 1, 1, 2, 2), (0, 2, 5), (0, 2, 6))
CHANNELS_IN = {"SD 1": (4, 8, 9), "SD 2": (4, 9), "SDXL": (4, 8, 9)}  # plain, edited by instruction, inpainting


# ---------------------------------------------------------------------------------------------- claims


def claims(structure: Structure, layout: str = "comfyui", prediction_type: str = "epsilon") -> tuple[LoaderClaim, ...]:
    """What each program does with a file in a layout."""
    return (
        _comfyui(structure, layout, prediction_type),
        _sdcpp(structure, layout),
        _diffusers(structure, layout),
        _stock_only("AUTOMATIC1111", structure, layout),
        _stock_only("InvokeAI", structure, layout),
    )


def best_layout(program: str) -> str:
    """The layout that a program reads."""
    return "sdcpp" if program == "sdcpp" else "comfyui"


def loads_in(structure: Structure, program: str) -> bool:
    """Whether a program (comfyui, sdcpp, diffusers) loads a structure in the layout that it reads."""
    judge = {"comfyui": lambda s, layout: _comfyui(s, layout, ""), "sdcpp": _sdcpp, "diffusers": _diffusers}[program]
    return judge(structure, best_layout(program)).verdict == "loads"


def _comfyui(s: Structure, layout: str, prediction_type: str) -> LoaderClaim:
    def claim(verdict: Verdict, why: str) -> LoaderClaim:
        return LoaderClaim(program="ComfyUI", verdict=verdict, why=why)

    if layout == "diffusers_unet":
        return _comfyui_by_diffusers_names(s, claim)
    names = modules(s, holes=layout == "sdcpp")
    depths = _counted(names)
    if not _recognised(s, depths):
        return claim("refuses", _not_recognised(s, depths))
    if names != modules(s):
        return claim("wrong", "it stops counting blocks at the first hole, and leaves out the rest")
    if why := assembled_wrongly(s):
        return claim("wrong", why)
    outputs = list(itertools.chain(*s.up))
    if prediction_type == "v_prediction" and s.family == "SD 2" and not (len(outputs) > 11 and outputs[11].depth):
        return claim("loads", "as ε-prediction: add ModelSamplingDiscrete with v_prediction")
    return claim("loads", f"as {s.family}")


def _counted(names: Mapping[str, tuple[int, ...]]) -> list[int]:
    """The depths that ComfyUI lists on the input side; it counts layers by their ResNets, up to the first hole."""
    places = {int(name.split(".")[1]) for name in names if name.startswith("input_blocks.")} | {0}
    count = next(i for i in itertools.count() if i not in places)
    return [names.get(f"input_blocks.{i}.1", (0, 0))[1] for i in range(1, count) if f"input_blocks.{i}.0" in names]


def _recognised(s: Structure, depths: Sequence[int]) -> bool:
    """A width of text is read off the first Transformer on the input side."""
    if s.family is None or not any(depths) or s.in_channels not in CHANNELS_IN[s.family]:
        return False
    return s.family != "SDXL" or tuple(depths) in COMFYUI_SDXL


def _not_recognised(s: Structure, depths: Sequence[int]) -> str:
    if s.family is None:
        return "it knows SD 1.x, SD 2.x and SDXL by 320 channels and the width of their text states"
    if not any(depths):
        return "it reads the width of the text states off the input side, where no attention is left"
    if s.in_channels not in CHANNELS_IN[s.family]:
        return f"it knows no {s.family} with {s.in_channels} input channels"
    return f"it knows SDXL by the attention of its input side, and not {list(depths)}"


def assembled_wrongly(s: Structure) -> str | None:
    """Why a recognised file would become another model, or None."""
    if s.replaced:
        return f"it would run plain modules instead of {' and '.join(s.replaced)}"
    if not all(layer.resnet for layer in s.layers):
        return "it builds a ResNet in every layer"
    if s.mid not in ((0, 0), (1, 0)) and not (s.mid[0] == 2 and s.mid[1]):
        return "it builds a middle block of one ResNet, or of two with attention between them"
    if s.unusual:
        return f"its code has no {', '.join(s.unusual)}"
    if s.heads != tuple(8 if s.family == "SD 1" else c // 64 for c in s.channels):
        return f"it would run other numbers of attention heads than {list(s.heads)}"
    return None


def _comfyui_by_diffusers_names(s: Structure, claim: Any) -> LoaderClaim:
    """Its table of UNets in diffusers' names: recognised by the input side alone, built from the table."""
    whole = tuple(layer.depth for layer in itertools.chain(*s.down))
    tables: dict[tuple[str | None, tuple[int, ...]], Structure | None] = {
        ("SD 1", (1, 1, 1, 1, 1, 1, 0, 0)): STOCK["SD 1"], ("SD 2", (1, 1, 1, 1, 1, 1, 0, 0)): STOCK["SD 2"],
        ("SDXL", (0, 0, 2, 2, 10, 10)): STOCK["SDXL"], ("SDXL", (0, 0, 2, 2, 4, 4)): SSD_1B,
        ("SDXL", (0, 0, 1, 1, 2, 2)): VEGA, ("SD 1", (0, 1, 1)): SDXS, ("SD 2", (1, 1, 1)): None,
    }  # fmt: skip
    if (s.family, whole) not in tables:
        return claim("refuses", "its table of UNets in diffusers' names does not have this one")
    table = tables[s.family, whole]
    if table is not None and not assembled_wrongly(s) and modules(table) == modules(s):
        return claim("loads", f"as {s.family}")
    return claim("wrong", "it takes the input side for that of a published UNet and builds the rest of that one")


def _sdcpp(s: Structure, layout: str) -> LoaderClaim:
    def claim(verdict: Verdict, why: str) -> LoaderClaim:
        return LoaderClaim(program="stable-diffusion.cpp", verdict=verdict, why=why)

    if layout == "diffusers_unet":
        return claim("refuses", "it reads LDM's names")
    if s.family is None or s.in_channels not in CHANNELS_IN[s.family]:
        return claim("refuses", "it knows SD 1.x, SD 2.x and SDXL")
    if any(len(block) > 2 for block in s.down) or any(len(block) > 3 for block in s.up):
        return claim("refuses", "it has room for two layers in a down block and three in an up block")
    ours, version = modules(s, holes=layout == "sdcpp"), _sdcpp_version(s, layout == "sdcpp")
    theirs = modules(version, holes=True)
    if not covers(ours, theirs):
        return claim("refuses", "tensors of the UNet that it takes this one for are missing")
    if ours == theirs and not (why := assembled_wrongly(s)):
        return claim("loads", f"as {s.family}")
    return claim("wrong", why if ours == theirs and why else "it would leave out what is more than it expects")


def _sdcpp_version(s: Structure, holes: bool) -> Structure:
    """The UNet that stable-diffusion.cpp takes a file for."""
    names = modules(s, holes)
    family = str(s.family)
    if "middle_block.1" in names or s.in_channels != 4:
        return STOCK[family]
    if family == "SDXL":
        return SSD_1B if names.get("output_blocks.3.1", (0, 0))[1] > 1 else VEGA
    has_71 = any(name.startswith("output_blocks.7.1") for name in names)
    return TINY[family] if family == "SD 2" or has_71 else SDXS


def _diffusers(s: Structure, layout: str) -> LoaderClaim:
    def claim(verdict: Verdict, why: str) -> LoaderClaim:
        return LoaderClaim(program="diffusers", verdict=verdict, why=why)

    if layout == "sdcpp" and modules(s) != modules(s, holes=True):
        return claim("refuses", "its converter counts blocks without holes")
    if s.replaced and s.whole:
        return claim("wrong", f"it would run plain modules instead of {' and '.join(s.replaced)}")
    if not s.plain:
        return claim("refuses", "to its own classes, weights are missing")
    if layout != "diffusers_unet" and len({len(block) for block in s.down}) > 1:
        return claim("refuses", "its converter takes one number of layers for every block")
    return claim("loads", "with from_single_file(…, config=FOLDER), where FOLDER holds the UNet's config.json")


def _stock_only(program: str, s: Structure, layout: str) -> LoaderClaim:
    """Programs that build a published UNet whatever the file holds."""

    def claim(verdict: Verdict, why: str) -> LoaderClaim:
        return LoaderClaim(program=program, verdict=verdict, why=why)

    if layout == "diffusers_unet" or s.family is None or s.in_channels not in CHANNELS_IN[s.family]:
        return claim("refuses", "it reads whole checkpoints of SD 1.x, SD 2.x and SDXL")
    names = modules(s, holes=layout == "sdcpp")
    probe = "input_blocks.4.1" if s.family == "SDXL" else "input_blocks.2.1"
    if program == "InvokeAI" and probe not in names:
        return claim("refuses", f"it knows {s.family} by the attention of {probe}")
    if names == modules(STOCK[s.family]) and not assembled_wrongly(s):
        return claim("loads", f"as {s.family}")
    return claim("wrong", f"it takes every {s.family} for the published UNet")

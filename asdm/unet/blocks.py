"""Block → layer → unit (§2.1): the only file that spells the attributes of diffusers' UNet blocks.

A *part* is a stretch of the forward that is timed and counted as one: a unit (ResNet or Transformer) or glue
(stem, time embedding, samplers, head). Parts never nest, so parts + what runs between them = the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from asdm.plan.topology import Topology, UnitShape

UNet = Any  # a diffusers UNet2DConditionModel, before or after surgery: its attributes are not typed
OTHER = "other"  # what runs outside every part: concatenated skips, additional embeddings, …


@dataclass(frozen=True)
class Part:
    """A unit or a piece of glue; `fqn` is diffusers' own path, `modules` is what is entered for it, in order."""

    fqn: str
    label: str
    kind: Literal["resnet", "transformer", "glue"]
    block: str
    layer: int | None
    modules: tuple[nn.Module, ...] = field(compare=False, repr=False)

    @property
    def params(self) -> int:
        return sum(p.numel() for module in self.modules for p in module.parameters())

    @property
    def parameter_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for module in self.modules for p in module.parameters())


def block_label(block: str) -> str:
    """A short label for people: `down_blocks.0` → `dn0`, `mid_block` → `mid`."""
    side, _, index = block.partition(".")
    return {"down_blocks": "dn", "up_blocks": "up", "mid_block": "mid"}.get(side, side) + index


def iter_blocks(unet: UNet) -> Iterator[tuple[str, Any]]:
    """Blocks in the order in which data flows: down, mid (where there is one), up."""
    for i, block in enumerate(unet.down_blocks):
        yield f"down_blocks.{i}", block
    if getattr(unet, "mid_block", None) is not None:
        yield "mid_block", unet.mid_block
    for i, block in enumerate(unet.up_blocks):
        yield f"up_blocks.{i}", block


def iter_units(unet: UNet) -> Iterator[Part]:
    """Every ResNet and Transformer unit in data-flow order; a unit without weights is a gap, not a unit."""
    for name, block in iter_blocks(unet):
        yield from _block_units(name, block)


def _block_units(name: str, block: Any) -> Iterator[Part]:
    resnets = list(getattr(block, "resnets", None) or [])
    attentions = list(getattr(block, "attentions", None) or [])
    for layer in range(max(len(resnets), len(attentions))):
        for kind, siblings, attribute in (("resnet", resnets, "resnets"), ("transformer", attentions, "attentions")):
            module = siblings[layer] if layer < len(siblings) else None
            if module is None or next(module.parameters(), None) is None:
                continue
            label = f"{block_label(name)}.{kind[0]}{layer}"
            yield Part(f"{name}.{attribute}.{layer}", label, kind, name, layer, (module,))  # type: ignore[arg-type]


def iter_parts(unet: UNet) -> Iterator[Part]:
    """Units and glue in data-flow order."""
    yield _glue("conv_in", unet.conv_in)
    yield _glue("time_embedding", unet.time_proj, unet.time_embedding)
    for name, block in iter_blocks(unet):
        yield from _block_units(name, block)
        for attribute in ("downsamplers", "upsamplers"):
            for i, sampler in enumerate(getattr(block, attribute, None) or []):
                verb = attribute[:-8]  # down, up
                yield Part(f"{name}.{attribute}.{i}", f"{block_label(name)}.{verb}", "glue", name, None, (sampler,))
    head = (unet.conv_norm_out, unet.conv_act, unet.conv_out)
    yield _glue("conv_out", *(module for module in head if module is not None))


def _glue(name: str, *modules: nn.Module) -> Part:
    return Part(name, name, "glue", "", None, modules)


def topology(unet: UNet) -> Topology:
    """The topology that plans are checked against; works on the meta device."""
    blocks, units = dict(iter_blocks(unet)), tuple(map(_unit_shape, iter_units(unet)))
    kinds = ("downsamplers", "upsamplers")
    samplers = {name: f"{name}.{kind}.0" for name, block in blocks.items() for kind in kinds if getattr(block, kind, 0)}
    return Topology(channels_stem=unet.conv_in.out_channels, blocks=tuple(blocks), samplers=samplers, units=units)


def _unit_shape(unit: Part) -> UnitShape:
    module: Any = unit.modules[0]
    inside = module.in_channels if hasattr(module, "in_channels") else module.query_dim  # a bare attention's
    outside = inside if unit.kind == "transformer" else module.out_channels
    names = {name: getattr(unit, name) for name in ("fqn", "label", "kind", "block", "layer")}
    return UnitShape(**names, channels_in=inside, channels_out=outside)


def shape_of_blocks(unet: UNet) -> Iterator[tuple[str, int, str | None]]:
    """Every block in data-flow order: its name, how many layers it has, and the fqn of its sampler."""
    samplers = topology(unet).samplers
    for name, block in iter_blocks(unet):
        yield name, len(block.resnets), samplers.get(name)


def skips(unet: UNet) -> list[str]:
    """The producer of each skip, in the order in which the down path pushes them."""
    producers = ["conv_in"]
    for name, block in iter_blocks(unet):
        if name.startswith("down_blocks."):
            producers += [f"{name}.layer.{i}" for i in range(len(block.resnets))]
            producers += [f"{name}.downsamplers.{i}" for i in range(len(block.downsamplers or []))]
    return producers


def skip_pairs(unet: UNet) -> list[tuple[str, str]]:
    """(producer, consumer) of every skip: the down path pushes, the up path pops (§2.1, Fig. 4)."""
    stack, pairs = skips(unet), []
    for name, block in iter_blocks(unet):
        if name.startswith("up_blocks."):
            pairs += [(stack.pop(), f"{name}.resnets.{i}") for i in range(len(block.resnets))]
    return pairs


def skips_in_teacher(student: UNet, teacher: UNet, teacher_name: Callable[[str], str]) -> dict[str, str]:
    """Each of a student's skips → the teacher's skip that its consumer was made for, both by their producers.

    Where layers were removed, a remaining consumer meets another producer than before: the last layer left in a down
    block produces what the last layer of the original did.
    """
    producer = {consumer: skip for skip, consumer in skip_pairs(teacher)}
    skip_of = {skip: producer.get(teacher_name(consumer), "") for skip, consumer in skip_pairs(student)}
    return {skip: theirs for skip, theirs in skip_of.items() if theirs}


def self_attentions(transformer: Any) -> Iterator[tuple[nn.Module, str]]:
    """(parent, attribute) of every self-attention in a Transformer unit; SDXL has several per unit."""
    return attentions(transformer, cross=False)


def attentions(transformer: Any, cross: bool) -> Iterator[tuple[nn.Module, str]]:
    """(parent, attribute) of every cross-attention, or every self-attention, in a Transformer unit."""
    for block in getattr(transformer, "transformer_blocks", []):
        for attribute in ("attn1", "attn2"):
            attention = getattr(block, attribute, None)
            if attention is not None and getattr(attention, "is_cross_attention", attribute == "attn2") == cross:
                yield block, attribute


def shortcut(unit: Any, inputs: torch.Tensor) -> torch.Tensor:
    """What goes past a unit's own computation: its input, through a ResNet's shortcut where it has one."""
    if getattr(unit, "conv_shortcut", None) is not None:
        inputs = unit.conv_shortcut(inputs)
    scale = getattr(unit, "output_scale_factor", 1.0)
    return inputs if scale == 1.0 else inputs / scale


@contextmanager
def watching_shortcut(unit: Any, inputs: torch.Tensor) -> Iterator[Callable[[], torch.Tensor]]:
    """A function that gives `shortcut(unit, inputs)` after a call of the unit, without computing it again."""
    taken = [inputs]
    scale = getattr(unit, "output_scale_factor", 1.0)
    with ExitStack() as stack:
        if getattr(unit, "conv_shortcut", None) is not None:
            hook = unit.conv_shortcut.register_forward_hook(lambda _m, _i, output: taken.append(output))
            stack.callback(hook.remove)
        yield lambda: taken[-1] if scale == 1.0 else taken[-1] / scale


def self_attention_names(unet: UNet) -> Iterator[tuple[str, str]]:
    """(unit, fqn) of every self-attention, replaced ones included."""
    names = {id(module): name for name, module in unet.named_modules()}
    for unit in iter_units(unet):
        if unit.kind == "transformer":
            for parent, attribute in self_attentions(unit.modules[0]):
                yield unit.fqn, f"{names[id(parent)]}.{attribute}"


def head(unet: UNet, hidden: torch.Tensor) -> torch.Tensor:
    """The prediction (b, 4, h, w) from the last up block's map (b, c, h, w)."""
    if unet.conv_norm_out is not None:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    return unet.conv_out(hidden)


def siblings(unet: UNet, fqn: str) -> tuple[nn.Module, ...]:
    """The units of one kind in one block, in the order of their layers: `fqn` and those beside it."""
    units = {unit.fqn: unit for unit in iter_units(unet)}
    if fqn not in units:
        return ()
    return tuple(u.modules[0] for u in units.values() if (u.block, u.kind) == (units[fqn].block, units[fqn].kind))


def counterpart(unet: UNet, block: str, other: UNet) -> str:
    """The block of `other` at the resolution of `block` in `unet`; raises ValueError if there is none."""
    side, _, index = block.partition(".")
    apart = len(other.up_blocks) - len(unet.up_blocks)
    name = f"{side}.{apart + int(index)}" if side == "up_blocks" else block
    if name not in dict(iter_blocks(other)):
        raise ValueError(f"there is no counterpart of {block} in a UNet of {len(list(iter_blocks(other)))} blocks.")
    return name


def time_embeddings(unet: UNet, timesteps: Sequence[float]) -> torch.Tensor:
    """A UNet's time embedding at each timestep: (timesteps, channels).

    Raises ValueError for a UNet that mixes more into it, such as SDXL's pooled prompt and image size.
    """
    for key in ("addition_embed_type", "class_embed_type", "num_class_embeds"):
        if unet.config.get(key) is not None:
            raise ValueError(
                f"this UNet's time embedding depends on more than the timestep ({key} is {unet.config[key]!r}), "
                "so it cannot be known before the call; choose gate input."
            )
    weight = next(unet.time_embedding.parameters())
    projected = unet.time_proj(torch.tensor(list(timesteps), device=weight.device))
    return unet.time_embedding(projected.to(weight.dtype))


def is_one_timestep(timestep: torch.Tensor | float) -> bool:
    """Whether a UNet is called at one timestep for the whole batch, from its shape alone: an expanded tensor is one."""
    return not isinstance(timestep, torch.Tensor) or timestep.numel() == 1 or timestep.stride(0) == 0


def share_one_timestep(unet: UNet) -> None:
    """Let the time embedding of a call at one timestep be one row, expanded over the batch (stride 0).

    Modules inside can then tell without waiting for a device that all images are at one timestep. What a UNet adds to
    the embedding for each image (SDXL's prompt and size) makes rows of their own again.
    """
    unet.register_forward_pre_hook(_note_timestep, with_kwargs=True)
    unet.time_embedding.register_forward_hook(_keep_one_row)


def stop_sharing_timesteps(unet: UNet) -> None:
    """Undo `share_one_timestep`."""
    for hooks, own in ((unet._forward_pre_hooks, _note_timestep), (unet.time_embedding._forward_hooks, _keep_one_row)):
        for key in [key for key, hook in hooks.items() if hook is own]:
            del hooks[key]
            unet._forward_pre_hooks_with_kwargs.pop(key, None)


def _note_timestep(unet: UNet, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    unet.time_embedding.one_timestep = is_one_timestep(args[1] if len(args) > 1 else kwargs["timestep"])


def _keep_one_row(embedding: Any, args: Any, output: torch.Tensor) -> torch.Tensor | None:
    one, embedding.one_timestep = getattr(embedding, "one_timestep", False), False
    return output[:1].expand_as(output) if one and not torch.compiler.is_exporting() else None


# ---------------------------------------------------------------------------------------------- surgery's verbs


def delete_layer(unet: UNet, block: str, layer: int) -> None:
    """Drop index `layer` from a block's ResNets and Transformers; what follows moves up one place."""
    module: Any = unet.get_submodule(block)
    for attribute in ("resnets", "attentions"):
        if siblings := getattr(module, attribute, None):
            del siblings[layer]


def delete_mid_block(unet: UNet) -> None:
    """Drop the middle block; diffusers then passes the deepest features straight up."""
    unet.mid_block = None


def delete_deepest_pair(unet: UNet) -> None:
    """Drop the last down block with the sampler into it, and the first up block with the sampler out of it."""
    del unet.down_blocks[-1]
    unet.down_blocks[-1].downsamplers = None
    del unet.up_blocks[0]


# ---------------------------------------------------------------------------------------------- hooks


@contextmanager
def hooked(parts: Sequence[Part], before: Callable[[str], Any], after: Callable[[str], Any]) -> Iterator[None]:
    """Call `before(fqn)` and `after(fqn)` around every module of every part; nothing is left hooked."""
    with ExitStack() as stack:
        for part in parts:
            for module in part.modules:
                stack.callback(module.register_forward_pre_hook(lambda _m, _i, fqn=part.fqn: before(fqn)).remove)
                stack.callback(module.register_forward_hook(lambda _m, _i, _o, fqn=part.fqn: after(fqn)).remove)
        yield

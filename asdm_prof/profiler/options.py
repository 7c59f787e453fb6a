"""Which replacements are timed, and in which calls: different ones in different units of one forward.

All options of a UNet take turns like the symbols of a Latin square. In every round each unit has another of its options
in place or stays as it is, so a few dozen calls time every option of every unit in situ. About a third of the calls
find a unit as it is; what those units take shows how fast the machine is in that round.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from asdm.plan.edits import ReplaceUnit
from asdm.plan.topology import Topology
from asdm.unet import surgery
from asdm.unet.replacements import names_of

FAST = ("gri_attention", "cond_conv")  # at the highest resolution with attention
ROUNDS = 1.5  # rounds per option of the unit that has most


def parse_options(text: str) -> list[str]:
    """`fast`, `all`, or replacements by name; raises ValueError that lists the choices for another name."""
    words = [word.strip() for word in text.split(",")]
    try:
        return names_of(",".join(",".join(FAST) if word == "fast" else word for word in words))
    except ValueError as error:
        raise ValueError(str(error).replace("choose from all,", "choose from fast, all,")) from None


def replaceable(shape: Topology, unet: nn.Module, asked: str = "fast") -> dict[str, list[ReplaceUnit]]:
    """The edits of each round, by its title; the UNet may be on the meta device.

    `fast`: each replacement of `FAST`, as it is by default, in all units of the highest resolution with attention.
    """
    names = parse_options(asked)
    if asked != "fast":
        return latin_square(surgery.applicable(unet, names))
    with_attention = [
        b for b in shape.down_blocks if any(u.kind == "transformer" and u.block == b for u in shape.units)
    ]
    if not with_attention:
        return {}
    pair = (with_attention[0], shape.mirror(with_attention[0]))
    shallow = [unit.fqn for unit in shape.units if unit.block in pair]
    applicable = [edit for edit in surgery.applicable(unet, names, shallow) if not edit.options]
    rounds = {name: [edit for edit in applicable if edit.with_ == name] for name in names}
    return {name: edits for name, edits in rounds.items() if edits}


def latin_square(edits: Sequence[ReplaceUnit]) -> dict[str, list[ReplaceUnit]]:
    """Every edit in one round, no two of one unit in the same, as evenly as their numbers allow."""
    by_unit: dict[str, list[ReplaceUnit]] = defaultdict(list)
    for edit in edits:
        by_unit[edit.unit].append(edit)
    n = math.ceil(ROUNDS * max(map(len, by_unit.values()), default=0))
    rounds: list[list[ReplaceUnit]] = [[] for _ in range(n)]
    for start, options in enumerate(by_unit.values()):
        for i, edit in enumerate(options):
            rounds[(start + i * n // len(options)) % n].append(edit)
    return {f"options, round {i + 1} of {n}": round_ for i, round_ in enumerate(rounds) if round_}


def stand_ins(unet: nn.Module, shapes: nn.Module, edits: Sequence[ReplaceUnit]) -> dict[str, nn.Module]:
    """Modules that take as long as replacements do: made on the meta device, with weights of no meaning where new.

    What a replacement decomposes or chooses takes minutes at full size, and time does not depend on it.
    """
    return {edit.unit: _filled(surgery.replacement_for(shapes, edit), unet.get_submodule(edit.unit)) for edit in edits}


def _filled(module: nn.Module, unit: nn.Module) -> nn.Module:
    own: dict[str, Any] = dict(unit.named_parameters())
    some = next(iter(own.values()))
    if some.is_meta:
        return module
    module = copy.deepcopy(module)
    for name, parameter in list(module.named_parameters()):
        if name in own and own[name].shape == parameter.shape:
            filled = own[name]
        else:
            values = torch.empty(parameter.shape, dtype=some.dtype, device=some.device).normal_(0, 0.02)
            filled = nn.Parameter(values, requires_grad=False)
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, filled)
    return module.eval()

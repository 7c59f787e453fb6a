"""Plans by name: the paper's assembly and BK-SDM's students, as functions of a topology."""

from __future__ import annotations

from collections.abc import Callable

from asdm.plan.edits import AnyEdit, RemoveBlock, RemoveLayer, ReplaceUnit
from asdm.plan.legality import resolve
from asdm.plan.topology import Topology


def without_layers(topology: Topology, blocks: tuple[str, ...]) -> list[AnyEdit]:
    """One layer less in each down block (its last) and in each mirrored up block (its second)."""
    edits: list[AnyEdit] = []
    for block in blocks:
        edits.append(RemoveLayer(block=block, layer=topology.layers(block)[-1]))
        edits.append(RemoveLayer(block=topology.mirror(block), layer=topology.layers(topology.mirror(block))[1]))
    return edits


def a_sdm(topology: Topology) -> list[AnyEdit]:
    """The paper's assembly (§2.2–2.4): a layer less in the shallowest pair, GRI on the attention left there."""
    edits = without_layers(topology, topology.down_blocks[:1])
    return _replace_shallow(topology, edits, "transformer", "gri_attention")


def _replace_shallow(topology: Topology, edits: list[AnyEdit], kind: str, name: str, **options: str) -> list[AnyEdit]:
    """`edits`, and every unit of a kind that they leave in the shallowest pair replaced with `name`."""
    gone, down = resolve(topology, edits).gone, topology.down_blocks[0]
    left = [u for u in topology.units if u.block in (down, topology.mirror(down)) and u.fqn not in gone]
    return edits + [ReplaceUnit(unit=u.fqn, with_=name, options=options) for u in left if u.kind == kind]


def a_sdm_clme(topology: Topology) -> list[AnyEdit]:
    """`a_sdm` with the pruned layers' kernels as experts (§2.3) in the ResNets left there, gated by their input."""
    return _replace_shallow(topology, a_sdm(topology), "resnet", "cond_conv", gate="input")


def a_sdm_clme_timestep(topology: Topology) -> list[AnyEdit]:
    """`a_sdm_clme` with gates on the timestep, which fold into plain convolutions."""
    return _replace_shallow(topology, a_sdm(topology), "resnet", "cond_conv", gate="timestep")


def bk_sdm_base(topology: Topology) -> list[AnyEdit]:
    """BK-SDM-Base: one layer less in every block."""
    return without_layers(topology, topology.down_blocks)


def bk_sdm_small(topology: Topology) -> list[AnyEdit]:
    """BK-SDM-Small: Base without the middle block."""
    return [*bk_sdm_base(topology), RemoveBlock(block="mid_block")]


def bk_sdm_tiny(topology: Topology) -> list[AnyEdit]:
    """BK-SDM-Tiny: Small without the deepest pair."""
    shallower = without_layers(topology, topology.down_blocks[:-1])
    return [*shallower, RemoveBlock(block="mid_block"), RemoveBlock(block=topology.down_blocks[-1])]


PRESETS: dict[str, Callable[[Topology], list[AnyEdit]]] = {
    preset.__name__: preset
    for preset in (a_sdm, a_sdm_clme, a_sdm_clme_timestep, bk_sdm_base, bk_sdm_small, bk_sdm_tiny)
}

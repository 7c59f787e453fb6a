"""Whole → block → layer → unit, with totals and shares: what every renderer walks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from asdm.measure.statistics import estimate
from asdm.records.measurement import Estimate
from asdm_prof.records import PartRecord, Profile


@dataclass
class Node:
    """A block, a layer or a part, with the sum of what is below it."""

    name: str
    label: str
    level: str  # unet, block, layer, part
    kind: str = ""
    parts: list[PartRecord] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)

    @property
    def latency_s(self) -> float:
        return sum(part.latency_s.median for part in self.parts)

    @property
    def share(self) -> float:
        return sum(part.share.median for part in self.parts)

    @property
    def macs(self) -> int:
        return sum(part.macs for part in self.parts)

    @property
    def params(self) -> int:
        return sum(part.params for part in self.parts)

    @property
    def peak_memory_bytes(self) -> int:
        return max((part.peak_memory_bytes for part in self.parts), default=0)

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Node]]:
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)


def tree_of(profile: Profile) -> Node:
    """The profile as a tree in data-flow order; stem, time embedding, head and `other` hang on the root."""
    root = Node("unet", profile.title, "unet", parts=list(profile.parts))
    for part in profile.parts:
        block = _block_of(part)
        if block is None:
            root.children.append(_leaf(part))
            continue
        parent = _child(root, block, part.label.partition(".")[0], "block")
        parent.parts.append(part)
        if part.layer is not None:
            parent = _child(parent, f"{block}.layer.{part.layer}", f"layer {part.layer}", "layer")
            parent.parts.append(part)
        parent.children.append(_leaf(part))
    return root


def _block_of(part: PartRecord) -> str | None:
    return part.block or None


def _leaf(part: PartRecord) -> Node:
    return Node(part.fqn, part.label, "part", part.kind, [part])


def _child(parent: Node, name: str, label: str, level: str) -> Node:
    for child in parent.children:
        if child.name == name:
            return child
    node = Node(name, label, level)
    parent.children.append(node)
    return node


def shallow_blocks(profile: Profile) -> tuple[str, str]:
    """The first down block and the last up block: the paper's dn-block0 and up-block3."""
    return profile.topology.down_blocks[0], profile.topology.up_blocks[-1]


def shallow_share(profile: Profile) -> Estimate:
    """The shallow blocks' part of all parts' time, run by run."""
    blocks = shallow_blocks(profile)
    inside = _runs([part for part in profile.parts if part.block in blocks])
    return estimate([a / b for a, b in zip(inside, _runs(profile.parts), strict=True)])


def _runs(parts: Sequence[PartRecord]) -> list[float]:
    return [sum(run) for run in zip(*(part.latency_s.samples for part in parts), strict=False)]


def shallow_params(profile: Profile) -> float:
    """The shallow blocks' part of the parameters."""
    blocks = shallow_blocks(profile)
    return sum(part.params for part in profile.parts if part.block in blocks) / profile.whole.params

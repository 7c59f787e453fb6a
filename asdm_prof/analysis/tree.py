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
        parent = root
        if part.block:
            parent = _child(root, part.block, part.label.partition(".")[0], "block", part)
            if part.layer is not None:
                parent = _child(parent, f"{part.block}.layer.{part.layer}", f"layer {part.layer}", "layer", part)
        parent.children.append(Node(part.fqn, part.label, "part", part.kind, [part]))
    return root


def _child(parent: Node, name: str, label: str, level: str, part: PartRecord) -> Node:
    """The child of that name, with one part more; made where the parent has none yet."""
    node = next((child for child in parent.children if child.name == name), None)
    if node is None:
        node = Node(name, label, level)
        parent.children.append(node)
    node.parts.append(part)
    return node


def shallow_blocks(profile: Profile) -> tuple[str, str]:
    """The first down block and the last up block: the paper's dn-block0 and up-block3."""
    return profile.topology.down_blocks[0], profile.topology.up_blocks[-1]


def shallow_share(profile: Profile) -> Estimate:
    """The shallow blocks' part of all parts' time, run by run."""
    return time_share(profile, shallow_blocks(profile))


def time_share(profile: Profile, blocks: Sequence[str]) -> Estimate:
    """Some blocks' part of all parts' time, run by run."""
    inside = [part for part in profile.parts if part.block in blocks]
    return estimate([a / b for a, b in zip(_runs(inside), _runs(profile.parts), strict=True)])


def _runs(parts: Sequence[PartRecord]) -> list[float]:
    return [sum(run) for run in zip(*(part.latency_s.samples for part in parts), strict=False)]


def shallow_params(profile: Profile) -> float:
    """The shallow blocks' part of the parameters."""
    blocks = shallow_blocks(profile)
    return sum(part.params for part in profile.parts if part.block in blocks) / profile.whole.params

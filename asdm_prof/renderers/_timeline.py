"""One UNet call as nested slices of median time, in data-flow order; private, shared by the trace renderers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from asdm_prof.analysis.tree import Node, tree_of
from asdm_prof.records import Profile


@dataclass(frozen=True)
class Slice:
    """A block, layer or part of the call; whole nanoseconds, so that slices touch and nest to the last digit."""

    node: Node
    depth: int
    start_ns: int
    end_ns: int


def slices(profile: Profile) -> list[Slice]:
    """The whole call, then each block, layer and part; parts run one after the other and fill what encloses them."""
    return list(_from(tree_of(profile), 0, 0))


def _from(node: Node, depth: int, start_ns: int) -> Iterator[Slice]:
    inside: list[Slice] = []
    end_ns = start_ns
    for child in node.children:
        inside += _from(child, depth + 1, end_ns)
        end_ns = max(one.end_ns for one in inside)
    if not node.children:
        end_ns += max(round(1e9 * node.latency_s), 0)  # what is measured as a rest may come out below nothing
    yield Slice(node, depth, start_ns, end_ns)
    yield from inside

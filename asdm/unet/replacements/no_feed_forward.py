"""A Transformer unit without its feed-forward; the rest of it stays.

What it does: in every block of the unit the feed-forward and its norm go, and attention's answers are added and
nothing is computed from them here. A constant is added in its place. It is zero at first, and the mean of what the
feed-forward gave once it is fitted on calibration data.

When it helps: at high resolutions, where it is most of a unit's linear multiply-adds (two thirds of them in SD 1.5).

Not in the paper. BK-SDM and SnapFusion remove whole units; their parts do unlike amounts of damage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from asdm.unet.replacements import Refit
from asdm.unet.replacements._parts import part_refits, without


def replace(unit: nn.Module, siblings: Sequence[nn.Module] = ()) -> nn.Module | None:
    """The Transformer unit without feed-forward, or None where it has none."""
    return without(unit, "ff", "norm3", lambda part: part.net[2])


def refits(unit: nn.Module) -> Iterable[Refit]:
    """The constants."""
    return part_refits(unit, "ff")

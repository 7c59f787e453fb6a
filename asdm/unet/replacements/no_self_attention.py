"""A Transformer unit without its self-attention; the rest of it stays.

What it does: in every block of the unit the self-attention and its norm go, and every token sees only itself, its
neighbours through the ResNets, and the text. A constant is added in its place. It is zero at first, and the mean of
what the self-attention gave once it is fitted on calibration data.

When it helps: at low resolutions, where the ResNets around it see the whole map, and where a UNet of few channels
spends its time on calls rather than on multiply-adds.

Not in the paper. BK-SDM and SnapFusion remove whole units; their parts do unlike amounts of damage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from asdm.unet.replacements import Refit
from asdm.unet.replacements._parts import part_refits, without


def replace(unit: nn.Module, siblings: Sequence[nn.Module] = ()) -> nn.Module | None:
    """The Transformer unit without self-attention, or None where it has none."""
    return without(unit, "attn1", "norm1", lambda part: part.to_out[0])


def refits(unit: nn.Module) -> Iterable[Refit]:
    """The constants."""
    return part_refits(unit, "attn1")

"""A Transformer unit without its cross-attention; the rest of it stays.

What it does: in every block of the unit the cross-attention and its norm go, and the unit no longer sees the text;
others still do. A constant is added in its place. It is zero at first, and the mean of what the cross-attention gave
once it is fitted on calibration data.

When it helps: where several units of one resolution attend to the same text.

Not in the paper. BK-SDM and SnapFusion remove whole units; their parts do unlike amounts of damage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from asdm.unet.replacements import Refit
from asdm.unet.replacements._parts import part_refits, without


def replace(unit: nn.Module, siblings: Sequence[nn.Module] = ()) -> nn.Module | None:
    """The Transformer unit without cross-attention, or None where it has none."""
    return without(unit, "attn2", "norm2", lambda part: part.to_out[0])


def refits(unit: nn.Module) -> Iterable[Refit]:
    """The constants."""
    return part_refits(unit, "attn2")

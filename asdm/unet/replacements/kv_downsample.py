"""Self-attention of all queries on averaged keys and values: at factor 2, the baseline that costs what GRI costs.

What it does: every token asks, and the averages of the map's factor×factor cells answer. n queries on n/4 keys make the
attention core cost exactly a quarter, as in `gri_attention`, so the two differ in what they see and in nothing else; at
factor 3 it costs a ninth. It has no weights of its own: it inherits the teacher's to_q, to_k, to_v, to_out.

When it helps: to judge GRI at equal cost (at 64×64 it is 3.2 times as fast as the full attention,
GRI 2.9 times), and where sharp queries matter more than sharp keys.

Not in the paper. `to_k` and `to_v` are linear without bias, so the map is averaged first and a quarter of
the tokens projected. Where every cell of a map is constant, it is the full attention exactly. At other sizes a cell
at the rim averages the pixels that exist. Cross-attention stays as it is, and masks are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from asdm.unet.replacements import Settings, check_choice
from asdm.unet.replacements._attention import MapAttention, pool, with_self_attention

FACTORS = (2, 3, 4)
SETTINGS: Settings = ({}, {"factor": 3})


class DownsampledAttention(MapAttention):
    """Self-attention of all tokens on averaged keys and values."""

    def __init__(self, attention: Any, factor: int = 2) -> None:
        super().__init__(attention)
        self.factor = factor

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        pooled = pool(x, self.factor)  # (b, ⌈h/f⌉·⌈w/f⌉, c)
        return self.attend(self.to_q(x.flatten(1, 2)), self.to_k(pooled), self.to_v(pooled))


def replace(unit: nn.Module, siblings: Sequence[nn.Module] = (), factor: int = 2) -> nn.Module | None:
    """The Transformer unit with averaged keys and values in all its self-attentions, or None where it has none."""
    check_choice("factor", factor, FACTORS)
    return with_self_attention(unit, partial(DownsampledAttention, factor=factor))

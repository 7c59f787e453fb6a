"""Self-attention of all queries on 2×2-averaged keys and values: the baseline that costs what GRI costs.

What it does: every token asks, and the map's 2×2 averages answer. n queries on n/4 keys make the attention core cost
exactly a quarter, as in `gri_attention`, so the two differ in what they see and in nothing else. It has no weights of
its own: it inherits the teacher's to_q, to_k, to_v, to_out.

When it helps: to judge GRI at equal cost (at 64×64 it is 3.2 times as fast as the full attention,
GRI 2.9 times), and where sharp queries matter more than sharp keys.

The paper does not have it. `to_k` and `to_v` are linear without bias, so the map is averaged first and a quarter of
the tokens projected. Where every 2×2 cell of a map is constant, it is the full attention exactly. At odd sizes a cell
at the rim averages the pixels that exist. Cross-attention stays as it is, and masks are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from asdm.unet.replacements._attention import MapAttention, pool, with_self_attention


class DownsampledAttention(MapAttention):
    """Self-attention of all tokens on 2×2-averaged keys and values."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        pooled = pool(x)  # (b, ⌈h/2⌉·⌈w/2⌉, c)
        return self.attend(self.to_q(x.flatten(1, 2)), self.to_k(pooled), self.to_v(pooled))


def replace(unit: nn.Module, siblings: Sequence[nn.Module] = ()) -> nn.Module | None:
    """The Transformer unit with averaged keys and values in all its self-attentions, or None where it has none."""
    return with_self_attention(unit, DownsampledAttention)

"""Global-regional interactive attention (§2.4, Fig. 6) in place of a Transformer unit's self-attention.

What it does: the feature map's 2×2-pooled tokens ask (global), its four pixel phases x[i::2, j::2] answer
(regional), one attention per phase, and the answers go back to their phases. Each of the four attentions has n/4
queries and n/4 keys, so the attention core costs exactly a quarter. It has no weights of its own: it inherits the
teacher's to_q, to_k, to_v, to_out.

When it helps: where the attention core dominates, at the highest resolution (64×64 in SD1.5, where the self-attention
is 2.9 times as fast and its unit 1.65 times; at 16×16 the unit gains 3 %: reports/sd15/networks.json).

What the paper leaves open, and what we chose: it does not say where the query projection sits relative to the
pooling (`to_q` is linear without bias, so we pool first and project a quarter of the tokens), nor what happens to
odd sizes (a phase may be one row or column short; it then answers with the tokens it has, and the pooled query at
the rim averages the pixels that exist), nor which "four sets of features" the pixels are rearranged into. Phases are
our reading; `regions` has two others, at the same cost: the map's four `quadrants`, and one attention on the `whole`
map with each answer for a 2×2 cell. Where every 2×2 cell of a map is constant, phases and whole are the full attention
exactly. Cross-attention stays as it is, and masks are refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from asdm.unet.replacements import check_choice
from asdm.unet.replacements._attention import MapAttention, pool, with_self_attention

REGIONS = ("phases", "quadrants", "whole")


class GRIAttention(MapAttention):
    """Self-attention of pooled queries on four regions, each of a quarter of the map's pixels, or on the whole map.

    With `regions` the phases or the quadrants, a region's answers go back to its pixels. On the whole map there is one
    answer for each 2×2 cell.
    """

    def __init__(self, attention: Any, regions: str = "phases") -> None:
        super().__init__(attention)
        self.regions = regions

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        b, h, w, _ = x.shape
        query = self.to_q(pool(x))  # (b, ⌈h/2⌉·⌈w/2⌉, c)
        key, value = (project(x.flatten(1, 2)).view(b, h, w, -1) for project in (self.to_k, self.to_v))
        if self.regions == "whole":
            out = self.attend(query, key.flatten(1, 2), value.flatten(1, 2)).view(b, -(-h // 2), -(-w // 2), -1)
            return out.repeat_interleave(2, 1)[:, :h].repeat_interleave(2, 2)[:, :, :w]
        mix = self._all_at_once if h % 2 == 0 and w % 2 == 0 else self._one_by_one
        return mix(query, key, value)  # (b, h, w, c)

    def _all_at_once(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Even sizes: the four regions fold into the batch, so that one attention call does all.

        No tensor has more than five dimensions, which is as many as Core ML takes.
        """
        b, h, w, c = key.shape
        split = (b * (h // 2), 2, w // 2, 2, c) if self.regions == "phases" else (b, 2, h // 2, 2, (w // 2) * c)

        def fold(x: torch.Tensor) -> torch.Tensor:
            """(b, h, w, c) → (4b, n/4, c), region by region."""
            return x.view(split).permute(1, 3, 0, 2, 4).reshape(4 * b, -1, c)

        query = query.expand(4, b, -1, c).reshape(4 * b, -1, c)
        out = self.attend(query, fold(key), fold(value))  # (4b, n/4, c)
        return out.view(2, 2, split[0], split[2], split[4]).permute(2, 0, 3, 1, 4).reshape(b, h, w, c)

    def _one_by_one(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Odd sizes: regions differ by a row or a column, so each is a call of its own."""
        b, h, w, c = key.shape
        out = torch.empty_like(value)
        for down, across in itertools.product(self._halves(h), self._halves(w)):
            region = (slice(None), down, across)
            rows, columns = key[region].shape[1:3]
            if rows * columns == 0:  # of a single row or column, a half is empty
                continue
            answer = self.attend(query, key[region].reshape(b, -1, c), value[region].reshape(b, -1, c))
            out[region] = answer.view(b, -(-h // 2), -(-w // 2), c)[:, :rows, :columns]
        return out

    def _halves(self, size: int) -> tuple[slice, slice]:
        """Both halves of the rows or columns of a map."""
        if self.regions == "phases":
            return slice(0, None, 2), slice(1, None, 2)
        return slice(0, -(-size // 2)), slice(-(-size // 2), None)


def replace(unit: nn.Module, siblings: Sequence[nn.Module] = (), regions: str = "phases") -> nn.Module | None:
    """The Transformer unit with GRI in all its self-attentions, or None where it has none."""
    check_choice("regions", regions, REGIONS)
    return with_self_attention(unit, partial(GRIAttention, regions=regions))

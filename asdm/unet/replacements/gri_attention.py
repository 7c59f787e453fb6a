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
the rim averages the pixels that exist). Where every 2×2 cell of a map is constant, it is the full attention exactly.
Cross-attention stays as it is, and masks are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from asdm.unet.replacements._attention import MapAttention, pool, with_self_attention

PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))


class GRIAttention(MapAttention):
    """Self-attention of pooled queries on four pixel phases."""

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        b, h, w, _ = x.shape
        query = self.to_q(pool(x))  # (b, ⌈h/2⌉·⌈w/2⌉, c)
        key, value = (project(x.flatten(1, 2)).view(b, h, w, -1) for project in (self.to_k, self.to_v))
        mix = self._all_phases_at_once if h % 2 == 0 and w % 2 == 0 else self._phase_by_phase
        return mix(query, key, value)  # (b, h, w, c)

    def _all_phases_at_once(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Even sizes: the four phases fold into the batch, so that one attention call does all."""
        b, h, w, c = key.shape
        query = query.expand(4, b, -1, c).reshape(4 * b, -1, c)
        out = self.attend(query, _fold(key), _fold(value))  # (4b, n/4, c)
        return out.view(2, 2, b * (h // 2), w // 2, c).permute(2, 0, 3, 1, 4).reshape(b, h, w, c)

    def _phase_by_phase(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Odd sizes: phases differ by a row or a column, so each is a call of its own."""
        b, h, w, c = key.shape
        out = torch.empty_like(value)
        for i, j in PHASES:
            phase = (slice(None), slice(i, None, 2), slice(j, None, 2))
            rows, columns = key[phase].shape[1:3]
            if rows * columns == 0:  # a single row or column has no odd phase
                continue
            answer = self.attend(query, key[phase].reshape(b, -1, c), value[phase].reshape(b, -1, c))
            out[phase] = answer.view(b, -(-h // 2), -(-w // 2), c)[:, :rows, :columns]
        return out


def _fold(x: torch.Tensor) -> torch.Tensor:
    """Phases of (b, h, w, c) before the batch: (4b, n/4, c), in the order of `PHASES`.

    No tensor has more than five dimensions, which is as many as Core ML takes.
    """
    b, h, w, c = x.shape
    return x.view(b * (h // 2), 2, w // 2, 2, c).permute(1, 3, 0, 2, 4).reshape(4 * b, -1, c)


def replace(unit: nn.Module, siblings: Sequence[nn.Module] = ()) -> nn.Module | None:
    """The Transformer unit with GRI in all its self-attentions, or None where it has none."""
    return with_self_attention(unit, GRIAttention)

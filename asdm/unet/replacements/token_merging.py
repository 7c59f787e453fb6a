"""Self-attention on merged tokens (Bolya & Hoffman, "Token Merging for Stable Diffusion", 2023).

What it does: one token of each 2×2 cell of the map is a destination, the other three are sources. Each source finds the
destination most like it (cosine of the normed tokens); the `ratio` of all tokens that match best are averaged into
theirs, the rest attend as they are, and a merged token's answer goes back to all that it stands for. It has no weights
of its own: it inherits the teacher's to_q, to_k, to_v, to_out.

When it helps: on large maps, where the attention core is quadratic in tokens; matching itself costs (3/16)·n²·c
multiply-adds against the core's 2·n²·c. On small maps sorting costs more than it saves.

Not in the paper. Bolya and Hoffman choose destinations at random in each call; here it is the top left token of a cell,
so that a student's output depends on its input alone. The ratio is at most the share of sources, 0.75. Cross-attention
and feed-forward stay as they are (their default too), and masks are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from asdm.unet.replacements import Settings, check_share
from asdm.unet.replacements._attention import MapAttention, with_self_attention

MOST = 0.75
SETTINGS: Settings = ({}, {"ratio": 0.25})


class MergedAttention(MapAttention):
    """Self-attention in which the tokens that are most alike share one answer."""

    def __init__(self, attention: Any, ratio: float = 0.5) -> None:
        super().__init__(attention)
        self.ratio = ratio

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        b, h, w, c = x.shape
        places = torch.arange(h * w, device=x.device).view(h, w)
        into = places[::2, ::2].reshape(-1)
        rest = torch.cat([places[i::2, j::2].reshape(-1) for i, j in ((0, 1), (1, 0), (1, 1))])
        tokens = x.reshape(b, h * w, c)
        source, destination = tokens[:, rest], tokens[:, into]  # (b, s, c), (b, d, c)
        merged = min(int(h * w * self.ratio), len(rest))
        if not merged:
            return self._attend(tokens)
        like = F.normalize(source, dim=-1) @ F.normalize(destination, dim=-1).transpose(1, 2)  # (b, s, d)
        best, match = like.max(dim=-1)
        order = best.argsort(dim=-1, descending=True)
        gone, kept = order[:, :merged], order[:, merged:]
        match = match.gather(1, gone)  # the destination of each merged source

        def wide(index: torch.Tensor) -> torch.Tensor:
            return index.unsqueeze(-1).expand(-1, -1, c)

        total = destination.scatter_add(1, wide(match), source.gather(1, wide(gone)))
        count = torch.ones_like(destination[..., :1])
        count = count.scatter_add(1, match[..., None], torch.ones_like(match[..., None], dtype=x.dtype))
        out = self._attend(torch.cat([source.gather(1, wide(kept)), total / count], dim=1))
        own, shared = out.split([len(rest) - merged, len(into)], dim=1)
        answers = own.new_zeros(source.shape).scatter(1, wide(kept), own)  # under autocast, tokens may be wider
        answers = answers.scatter(1, wide(gone), shared.gather(1, wide(match)))
        return torch.cat([answers, shared], dim=1)[:, torch.cat([rest, into]).argsort()]

    def _attend(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.attend(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))


def replace(unit: nn.Module, siblings: Sequence[nn.Module] = (), ratio: float = 0.5) -> nn.Module | None:
    """The Transformer unit with merged tokens in all its self-attentions, or None where it has none."""
    check_share("ratio", ratio, MOST)
    return with_self_attention(unit, partial(MergedAttention, ratio=ratio))

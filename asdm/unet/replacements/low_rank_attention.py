"""Self-attention with narrower heads: queries with keys, and values with the output, are cut in rank together.

What it does: a head's scores depend on its query and key projections only through their product, and its answer on
its value and output projections only through theirs. Each product is cut to `rank` times the head's size by its
singular values (SlimDiff's joint decomposition) and split again, so a head stays a head and the attention core gets
narrower too. Inputs count by their mean square on calibration data, or alike without; least squares on calibration data
then refits to_out.

When it helps: projections and attention core both fall in proportion to `rank`, with no further call. At full rank it
is the attention exactly.

Not in the paper; SlimDiff cuts the same two products from activations.

Cross-attention stays as it is, masks are refused, and an attention with biases in its projections is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from asdm.unet.blocks import self_attentions
from asdm.unet.replacements import Power, Refit, Settings, check_share
from asdm.unet.replacements._attention import MapAttention, output_refits, with_self_attention
from asdm.unet.replacements._layers import linear, power_at, rank_of, root_of

SETTINGS: Settings = ({}, {"rank": 0.25})


class LowRankAttention(MapAttention):
    """Self-attention whose heads are narrower than the teacher's, with scores scaled as the teacher's."""

    def __init__(self, attention: Any, rank: float = 0.5, power: torch.Tensor | None = None) -> None:
        super().__init__(attention)
        size = attention.to_q.out_features // self.heads
        self.scale = size**-0.5
        narrow = rank_of(rank, size)
        root, out = root_of(power, attention.to_q.weight[0]), attention.to_out[0]
        projections = (attention.to_q, attention.to_k, attention.to_v)
        query, key, value = (self._by_head(layer.weight) * root for layer in projections)
        left, right = _product(query.transpose(1, 2), key, narrow)
        self.to_q, self.to_k = self._layer(left.transpose(1, 2) / root), self._layer(right / root)
        reads = out.weight.detach().float().unflatten(1, (self.heads, size)).transpose(0, 1)  # (heads, c, d)
        left, right = _product(reads, value, narrow)
        self.to_v = self._layer(right / root)
        weight = left.transpose(0, 1).flatten(1).to(out.weight.dtype)
        self.to_out = nn.ModuleList([linear(weight, out.bias), *attention.to_out[1:]])

    def _by_head(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.detach().float().unflatten(0, (self.heads, -1))  # (heads, d, c)

    def _layer(self, by_head: torch.Tensor) -> nn.Linear:
        out: Any = self.to_out[0]
        return linear(by_head.flatten(0, 1).to(out.weight.dtype), None)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(1, 2)
        return self.attend(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))


def _product(left: torch.Tensor, right: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(h, a, d) @ (h, d, b) as (h, a, rank) @ (h, rank, b), by way of the small (d, d) matrix between them."""
    (left, inner), (right, other) = torch.linalg.qr(left), torch.linalg.qr(right.transpose(1, 2))
    u, s, v = torch.linalg.svd(inner @ other.transpose(1, 2))
    half = s[:, None, :rank].sqrt()
    return left @ u[..., :rank] * half, (right @ v.transpose(1, 2)[..., :rank] * half).transpose(1, 2)


def replace(
    unit: nn.Module, siblings: Sequence[nn.Module] = (), rank: float = 0.5, power: Power | None = None
) -> nn.Module | None:
    """The Transformer unit with narrower heads in all its self-attentions, or None where it has none to narrow."""
    check_share("rank", rank)
    attentions: list[Any] = [getattr(parent, name) for parent, name in self_attentions(unit)]
    if any(layer.bias is not None for a in attentions for layer in (a.to_q, a.to_k, a.to_v)):
        return None
    place = {id(module): path for path, module in unit.named_modules()}

    def narrow(attention: Any) -> LowRankAttention:
        return LowRankAttention(attention, rank, measured.pop(0))

    measured = [power_at(power, f"{place[id(attention)]}.to_q") for attention in attentions]
    return with_self_attention(unit, narrow)


def refits(unit: nn.Module) -> Iterable[Refit]:
    """The output projections of the self-attentions."""
    return output_refits(unit, ("attn1",))

"""What self-attentions on a map share: the teacher's projections, the size of the map, and who tells it to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from asdm.unet.blocks import self_attentions
from asdm.unet.replacements import Refit, shared_copy


class MapAttention(nn.Module):
    """Self-attention that knows that its tokens are an (h, w) map; it inherits to_q, to_k, to_v, to_out.

    It computes with PyTorch's scaled_dot_product_attention, whatever processor, slicing or fused projections are set
    on the attentions beside it. `size` is the (h, w) of the tokens to come.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.heads: int = attention.heads
        self.to_q: nn.Module = attention.to_q
        self.to_k: nn.Module = attention.to_k
        self.to_v: nn.Module = attention.to_v
        self.to_out: nn.ModuleList = attention.to_out
        self.scale: float | None = None  # of the scores; None: 1/√d
        self.size: tuple[int, int] | None = None

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        """Every token's answer on a map (b, h, w, c), as a map (b, h, w, c) or its tokens."""
        raise NotImplementedError

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Attend over tokens (b, h·w, c) → (b, h·w, c); raises ValueError for a mask or foreign keys."""
        if encoder_hidden_states is not None or attention_mask is not None:
            raise ValueError(
                f"{type(self).__name__} is self-attention without a mask; remove the mask, or keep this unit."
            )
        b, n, c = hidden_states.shape
        h, w = self.size or (0, 0)
        if h * w != n:
            raise ValueError(
                f"{type(self).__name__} expected {h}×{w} tokens, got {n}; call it through its Transformer unit."
            )
        out = self.mix(hidden_states.view(b, h, w, c))
        return self.to_out[1](self.to_out[0](out.reshape(b, n, -1)))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """softmax(QKᵀ/√d)V in each head: (b, n, c), (b, m, c), (b, m, c) → (b, n, c)."""
        query, key, value = (self.split(x) for x in (query, key, value))
        out = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        return out.transpose(1, 2).flatten(2)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(b, n, heads·d) → (b, heads, n, d)."""
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


def pool(x: torch.Tensor, factor: int = 2) -> torch.Tensor:
    """Average of factor×factor cells of (b, h, w, c) as tokens; at a rim, of the pixels that exist."""
    b, h, w, c = x.shape
    if h % factor == 0 and w % factor == 0:
        return x.view(b * (h // factor), factor, w // factor, factor, c).mean(dim=(1, 3)).view(b, -1, c)
    pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), factor, ceil_mode=True, count_include_pad=False)
    return pooled.flatten(2).transpose(1, 2)


def with_self_attention(unit: nn.Module, kind: Callable[[Any], MapAttention]) -> nn.Module | None:
    """The Transformer unit with `kind` in all its self-attentions, or None where it has none; a copy."""
    if next(self_attentions(unit), None) is None:
        return None
    unit = shared_copy(unit)
    for parent, name in self_attentions(unit):
        setattr(parent, name, kind(getattr(parent, name)))
    unit.register_forward_pre_hook(_tell_size, with_kwargs=True)
    return unit


def _tell_size(unit: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A Transformer unit flattens its map before its blocks see it, so the size is passed on here."""
    x = args[0] if args else kwargs["hidden_states"]
    for parent, name in self_attentions(unit):
        if isinstance(attention := getattr(parent, name), MapAttention):
            attention.size = (x.shape[-2], x.shape[-1])


def output_refits(unit: nn.Module, places: Sequence[str] = ("attn1", "attn2")) -> Iterator[Refit]:
    """The output projections of a Transformer unit's attentions."""
    for i, block in enumerate(getattr(unit, "transformer_blocks", [])):
        for place in places:
            if hasattr(getattr(block, place, None), "to_out"):
                layer = f"transformer_blocks.{i}.{place}.to_out.0"
                yield Refit(layer, layer)

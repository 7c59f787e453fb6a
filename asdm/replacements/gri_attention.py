"""Global-regional interactive attention (§2.4, Fig. 6) in place of a Transformer unit's self-attention.

What it does: the feature map's 2×2-pooled tokens ask (global), its four pixel phases x[i::2, j::2] answer
(regional), one attention per phase, and the answers go back to their phases. Each of the four attentions has n/4
queries and n/4 keys, so the attention core costs exactly a quarter. It has no weights of its own: it inherits the
teacher's to_q, to_k, to_v, to_out.

When it helps: where the attention core dominates, at the highest resolution (64×64 in SD1.5).

What the paper leaves open, and what we chose: it does not say where the query projection sits relative to the
pooling (`to_q` is linear without bias, so we pool first and project a quarter of the tokens), nor what happens to
odd sizes (a phase may be one row or column short; it then answers with the tokens it has, and the pooled query at
the rim averages the pixels that exist).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from asdm.replacements import shared_copy
from asdm.units import self_attentions

PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))


class GRIAttention(nn.Module):
    """Self-attention of pooled queries on four pixel phases; `size` is the (h, w) of the tokens to come."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.heads: int = attention.heads
        self.to_q: nn.Module = attention.to_q
        self.to_k: nn.Module = attention.to_k
        self.to_v: nn.Module = attention.to_v
        self.to_out: nn.ModuleList = attention.to_out
        self.size: tuple[int, int] | None = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Attend over tokens (b, h·w, c) → (b, h·w, c); raises ValueError for a mask or foreign keys."""
        if encoder_hidden_states is not None or attention_mask is not None:
            raise ValueError("GRI attention is self-attention without a mask; remove the mask, or keep this unit.")
        b, n, c = hidden_states.shape
        h, w = self.size or (0, 0)
        if h * w != n:
            raise ValueError(
                f"GRI attention was told {h}×{w} tokens and got {n}; call it through its Transformer unit."
            )
        x = hidden_states.view(b, h, w, c)
        query = self.to_q(_pool(x))  # (b, ⌈h/2⌉·⌈w/2⌉, c)
        key, value = (project(hidden_states).view(b, h, w, -1) for project in (self.to_k, self.to_v))
        mix = self._all_phases_at_once if h % 2 == 0 and w % 2 == 0 else self._phase_by_phase
        out = mix(query, key, value)  # (b, h, w, c)
        return self.to_out[1](self.to_out[0](out.reshape(b, n, -1)))

    def _all_phases_at_once(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Even sizes: the four phases fold into the batch, so that one attention call does all."""
        b, h, w, c = key.shape
        query = query.unsqueeze(1).expand(b, 4, -1, c).reshape(4 * b, -1, c)
        out = self._attend(query, _fold(key), _fold(value))  # (4b, n/4, c)
        return out.view(b, 2, 2, h // 2, w // 2, c).permute(0, 3, 1, 4, 2, 5).reshape(b, h, w, c)

    def _phase_by_phase(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Odd sizes: phases differ by a row or a column, so each is a call of its own."""
        b, h, w, c = key.shape
        out = torch.empty_like(value)
        for i, j in PHASES:
            phase = (slice(None), slice(i, None, 2), slice(j, None, 2))
            rows, columns = key[phase].shape[1:3]
            if rows * columns == 0:  # a single row or column has no odd phase
                continue
            answer = self._attend(query, key[phase].reshape(b, -1, c), value[phase].reshape(b, -1, c))
            out[phase] = answer.view(b, -(-h // 2), -(-w // 2), c)[:, :rows, :columns]
        return out

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        def split(x: torch.Tensor) -> torch.Tensor:
            return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)  # (b, heads, n, d)

        out = F.scaled_dot_product_attention(split(query), split(key), split(value))
        return out.transpose(1, 2).flatten(2)


def _pool(x: torch.Tensor) -> torch.Tensor:
    """2×2 average of (b, h, w, c) as tokens (b, ⌈h/2⌉·⌈w/2⌉, c)."""
    b, h, w, c = x.shape
    if h % 2 == 0 and w % 2 == 0:
        return x.view(b, h // 2, 2, w // 2, 2, c).mean(dim=(2, 4)).view(b, -1, c)
    pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), 2, ceil_mode=True, count_include_pad=False)
    return pooled.flatten(2).transpose(1, 2)


def _fold(x: torch.Tensor) -> torch.Tensor:
    """Phases of (b, h, w, c) into the batch: (4b, n/4, c), in the order of `PHASES`."""
    b, h, w, c = x.shape
    return x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 2, 4, 1, 3, 5).reshape(4 * b, -1, c)


def _tell_size(unit: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A Transformer unit flattens its map before its blocks see it, so the size is passed on here."""
    x = args[0] if args else kwargs["hidden_states"]
    for attention in _gri_attentions(unit):
        attention.size = (x.shape[-2], x.shape[-1])


def _gri_attentions(unit: nn.Module) -> Iterator[GRIAttention]:
    for parent, name in self_attentions(unit):
        attention = getattr(parent, name)
        if isinstance(attention, GRIAttention):
            yield attention


def replace(unit: nn.Module, siblings: Sequence[nn.Module] = ()) -> nn.Module | None:
    """The Transformer unit with GRI in all its self-attentions, or None where it has none."""
    if next(self_attentions(unit), None) is None:
        return None
    unit = shared_copy(unit)
    for parent, name in self_attentions(unit):
        setattr(parent, name, GRIAttention(getattr(parent, name)))
    unit.register_forward_pre_hook(_tell_size, with_kwargs=True)
    return unit

"""A Transformer unit whose attentions keep a share of their heads.

What it does: the heads of self- and cross-attention are ranked by what they add to the output (the mean square of
their answers on calibration data times the squared weights that read them; without data, the weights alone), and the
`keep` best stay, at least one. Their weights are the teacher's; least squares on calibration data then refits to_out,
so that what stays makes up for what went. They remain diffusers' attentions, processors and all.

When it helps: projections and attention core both fall in proportion to `keep`.

Not in the paper; structured pruning as in OBS-Diff, with the compensation in closed form.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from asdm.unet.replacements import Power, Refit, Settings, check_share, shared_copy
from asdm.unet.replacements._attention import output_refits
from asdm.unet.replacements._layers import columns, importance, power_at, rank_of, rows, transformer_blocks

SETTINGS: Settings = ({}, {"keep": 0.75})


def replace(
    unit: nn.Module, siblings: Sequence[nn.Module] = (), keep: float = 0.5, power: Power | None = None
) -> nn.Module | None:
    """The Transformer unit with fewer heads, or None where the share leaves every attention all of its heads."""
    check_share("keep", keep)
    if all(rank_of(keep, attention.heads) == attention.heads for _, attention in _attentions(unit)):
        return None
    unit = shared_copy(unit)
    for path, attention in _attentions(unit):
        out, heads = attention.to_out[0], attention.heads
        scores = importance(out.weight, power_at(power, f"{path}.to_out.0")).view(heads, -1)  # (heads, d)
        kept = scores.sum(1).topk(rank_of(keep, heads)).indices.sort().values
        size = scores.shape[1]
        places = (kept[:, None] * size + torch.arange(size, device=kept.device)).flatten()
        for name in ("to_q", "to_k", "to_v"):
            setattr(attention, name, rows(getattr(attention, name), places))
        attention.to_out[0] = columns(out, places)
        attention.heads = attention.sliceable_head_dim = len(kept)
        attention.inner_dim = attention.inner_kv_dim = len(places)
    return unit


def _attentions(unit: nn.Module) -> Iterator[tuple[str, Any]]:
    for i, block in enumerate(transformer_blocks(unit)):
        for place in ("attn1", "attn2"):
            attention: Any = getattr(block, place, None)
            if getattr(attention, "heads", 1) > 1 and attention.to_q.out_features == attention.to_k.out_features:
                yield f"transformer_blocks.{i}.{place}", attention


def refits(unit: nn.Module) -> Iterable[Refit]:
    """The output projections."""
    return output_refits(unit)

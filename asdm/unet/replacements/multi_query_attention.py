"""Self-attention whose heads share keys and values (Shazeer 2019; grouped: Ainslie et al., "GQA", 2023).

What it does: `groups` of heads have one key and one value each, the averages of their heads' projections, as GQA makes
them of a trained model. With one group this is multi-query attention. to_q and to_out are the teacher's own.

When it helps: to_k and to_v cost groups/heads of what they did; the attention core costs the same. Averaged heads
answer differently, so it is made to be trained; least squares on calibration data refits to_out.

Not in the paper; after GQA's averaging, language models are trained on for 5 % of their training.

Cross-attention stays as it is (its keys are those of a short text), and masks are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from asdm.unet.replacements import Refit, Settings
from asdm.unet.replacements._attention import MapAttention, output_refits, with_self_attention
from asdm.unet.replacements._layers import linear

SETTINGS: Settings = ({},)


class GroupedAttention(MapAttention):
    """Self-attention of all heads on the keys and values of their group."""

    def __init__(self, attention: Any, groups: int = 1) -> None:
        super().__init__(attention)
        if groups < 1 or self.heads % groups:
            choices = ", ".join(str(n) for n in range(1, self.heads + 1) if self.heads % n == 0)
            raise ValueError(f"groups must divide the {self.heads} heads, got {groups}; choose from {choices}.")
        self.groups = groups
        self.to_k, self.to_v = (self._averaged(project) for project in (attention.to_k, attention.to_v))

    def _averaged(self, project: nn.Linear) -> nn.Linear:
        def mean(tensor: torch.Tensor) -> torch.Tensor:  # (heads·d, …) → (groups·d, …)
            return tensor.unflatten(0, (self.groups, self.heads // self.groups, -1)).mean(dim=1).flatten(0, 1)

        return linear(mean(project.weight.detach()), None if project.bias is None else mean(project.bias.detach()))

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(1, 2)
        key, value = (self._shared(project(tokens)) for project in (self.to_k, self.to_v))
        out = F.scaled_dot_product_attention(self.split(self.to_q(tokens)), key, value)
        return out.transpose(1, 2).flatten(2)

    def _shared(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        each = x.view(b, n, self.groups, 1, -1).expand(-1, -1, -1, self.heads // self.groups, -1)
        return each.reshape(b, n, self.heads, -1).transpose(1, 2)  # (b, heads, n, d)


def replace(unit: nn.Module, siblings: Sequence[nn.Module] = (), groups: int = 1) -> nn.Module | None:
    """The Transformer unit with shared keys and values in all its self-attentions, or None where it has none."""
    return with_self_attention(unit, partial(GroupedAttention, groups=groups))


def refits(unit: nn.Module) -> Iterable[Refit]:
    """The output projection of every self-attention."""
    return output_refits(unit, ("attn1",))

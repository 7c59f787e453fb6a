"""Which kernel torch takes for each scaled dot-product attention of a forward."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode

from asdm.unet.blocks import Part, hooked


def sdpa_kernels(unet: nn.Module, inputs: dict[str, Any], parts: Sequence[Part]) -> dict[str, tuple[str, ...]]:
    """The kernels of each part's attentions in the order they are called: flash, efficient, cudnn or math, by fqn.

    An attention that is written out in products takes none. One eager call of the UNet on its own device finds out.
    """
    kernels: dict[str, tuple[str, ...]] = {}
    with _Kernels() as chosen, hooked(parts, lambda _: chosen.names.clear(), lambda fqn: chosen.give(fqn, kernels)):
        unet(**inputs)
    return kernels


class _Kernels(TorchFunctionMode):
    """Asks before each attention which kernel it will take."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def give(self, fqn: str, kernels: dict[str, tuple[str, ...]]) -> None:
        """Put down the kernels since the last part for the part `fqn`."""
        if self.names:
            kernels[fqn] = (*kernels.get(fqn, ()), *self.names)
        self.names.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.names.append(_kernel(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _kernel(query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
            is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> str:  # fmt: skip
    choice = torch._fused_sdp_choice(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return SDPBackend(choice).name.lower().removesuffix("_attention")

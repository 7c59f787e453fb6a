"""Cross-layer multi-expert conditional convolution, CLME-CondConv (§2.3, Fig. 5), in place of 3×3 convolutions.

What it does: the kernels of the same place (conv1, conv2) in every layer of the *original* block, the pruned layers
included, become experts of each layer that is left. A gate mixes them into one kernel per image, so the pruned
layers' weights are used again at the price of one convolution: kernel = Σ gate·expert.

When it helps: where layers were pruned from a shallow block, whose kernels are small and whose maps are large. There
the block's capacity is lost, and mixing kernels is cheap beside the convolution itself: 4 % of the ResNet at batch 1
(reports/sd15/networks.json). On a CPU, where large images go through the ResNet one after the other, more of them cost
no more each (networks-kept.json); folded for timesteps the experts cost nothing.

What the paper leaves open, and what we chose:
- Which kernels can be experts of each other: those of one shape. A place whose shape no other layer shares stays a
  plain convolution (conv1 of the first layer of an up block).
- The gate: a sigmoid of a linear layer, either on the pooled input of the convolution (`gate: input`, one kernel per
  image, so the two halves of classifier-free guidance are gated apart), or on the time embedding (`gate: timestep`,
  one kernel for the batch, which folds into plain convolutions for a given list of timesteps).
- Where it starts: a student must begin as the pruned teacher, and a sigmoid that is nearly 0 or 1 hardly learns. So
  the sigmoid is taken at its steepest point and shifted: gate = 2·σ(z) − 1, plus 1 for the layer's own kernel, z = 0.
  That starts *exactly* at the own kernel; the gates learn from the first step on, the foreign kernels as soon as
  their gates have left zero. A foreign gate reaches from −1 to 1, the own one from 0 to 2.
- Biases are not mixed: a layer keeps its own.
- Whether "every layer of the original block" holds the layer itself. In the combined UNet its kernel is stage 1's, and
  its original one is gone; with `original: true` that one is an expert too.

A graph with a free batch (`asdm export`) multiplies patches of the map by each image's kernel. With a timestep gate it
has one kernel for the batch, and so takes one timestep a call, as samplers do.

No forward waits for an accelerator: what a call decides, it decides from shapes, so that it can be captured in a graph.
Kernels are mixed in the order in which memory holds them, contiguous or channels last.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from asdm.unet import blocks
from asdm.unet.replacements import shared_copy

GATES = ("input", "timestep")
PLACES = ("conv1", "conv2")
ROUNDING = 5e-4  # relative, of timesteps that come in half precision
LARGE = 4 << 20  # bytes of an image's map from which it goes alone; at 1.3 MB it costs a tenth, at 5.2 MB it saves some


class _SeveralKernels(nn.Conv2d):
    """A convolution with several kernels (n, out, in, h, w) in a parameter, which takes memory formats as one does."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        def per_kernel(tensor: torch.Tensor) -> torch.Tensor:
            return fn(tensor.flatten(0, 1)).unflatten(0, tensor.shape[:2]) if tensor.dim() == 5 else fn(tensor)

        return super()._apply(per_kernel, recurse)


class CondConv2d(_SeveralKernels):
    """A convolution whose kernel is mixed from its own and the `others`; `weight` stays the own kernel.

    It is a Conv2d with more parameters: `experts` (num_experts − 1, out, in, h, w), and `routing`, which maps what the
    gate looks at to one number per expert, the own one first.
    """

    def __init__(self, own: nn.Conv2d, others: Sequence[nn.Conv2d], time_channels: int | None = None) -> None:
        super().__init__(**_geometry(own))
        self.weight, self.bias = own.weight, own.bias
        self.num_experts = 1 + len(others)
        self.experts = nn.Parameter(torch.stack([other.weight.detach() for other in others]))
        self.gate = "input" if time_channels is None else "timestep"
        self.routing = nn.Linear(time_channels or own.in_channels, self.num_experts, device="meta")
        self.routing.to(own.weight.dtype).to_empty(device=own.weight.device)
        nn.init.zeros_(self.routing.weight)
        nn.init.zeros_(self.routing.bias)
        self.time: torch.Tensor | None = None  # (1 or b, time_channels), set by the ResNet unit at each call

    def opened(self, features: torch.Tensor) -> torch.Tensor:
        """How far each gate is from its start, (b, num_experts), for pooled inputs or time embeddings (b, channels)."""
        return torch.tanh(self.routing(features) / 2)  # = 2·sigmoid − 1

    def mixed(self, opened: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
        """Kernels (b, out, in, h, w) under gates (b, num_experts), put into `memory` (1, out·in·h·w) if it is given."""
        last = _is_channels_last(self.weight)
        own, others = _as_rows(self.weight[None], last), _as_rows(self.experts, last)
        opened = opened.to(own.dtype)  # autocast does not look after addmm_
        rows = torch.addcmul(own, opened[:, :1], own, out=memory)
        rows = rows.addmm_(opened[:, 1:], others)  # in place: mixing costs what it moves in memory
        return _as_kernels(rows, self.weight.shape, last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        opened = self.opened(x.mean(dim=(2, 3)) if self.gate == "input" else _required(self.time))
        alone = _is_plain_inference(x) and len(opened) == 1
        return convolve(self, x, self.mixed(opened, _workspace(self.weight) if alone else None))


def _is_channels_last(weight: torch.Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def _as_rows(kernels: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """Kernels (n, out, in, h, w) as rows (n, out·in·h·w) in the order of their memory, so that nothing is copied."""
    return (kernels.permute(0, 1, 3, 4, 2) if channels_last else kernels).reshape(len(kernels), -1)


def _as_kernels(rows: torch.Tensor, shape: torch.Size, channels_last: bool) -> torch.Tensor:
    """The inverse of `_as_rows`, for kernels of `shape` (out, in, h, w)."""
    outside, inside, *window = shape
    if channels_last:
        return rows.view(-1, outside, *window, inside).permute(0, 1, 4, 2, 3)
    return rows.view(-1, *shape)


class FoldedConv2d(_SeveralKernels):
    """A convolution with one kernel per timestep, (timesteps, out, in, h, w); `timesteps` say which is the call's."""

    def __init__(self, conv: CondConv2d, times: torch.Tensor, timesteps: Timesteps) -> None:
        super().__init__(**_geometry(conv))
        self.weight, self.bias = nn.Parameter(_decided(conv, times)), conv.bias
        self.timesteps = timesteps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = self.timesteps.places
        if places is None:
            raise ValueError("a folded convolution needs a timestep; call it through its UNet.")
        if isinstance(places, torch.Tensor):
            return convolve(self, x, self.weight.index_select(0, places))
        return convolve(self, x, self.weight[places[0] : places[0] + 1] if len(places) == 1 else self.weight[places])


class Timesteps:
    """The timesteps that a UNet was folded for, and which of them the current call is at.

    A UNet looks it up once a call, by the number, and its convolutions read it here. A timestep on an accelerator is
    looked up there, since reading it would make the host wait and could not be captured in a graph.
    """

    def __init__(self, timesteps: Sequence[float]) -> None:
        self.timesteps = [float(timestep) for timestep in timesteps]
        self.places: list[int] | torch.Tensor | None = None  # one for the batch, or one an image
        self._known: dict[torch.device, torch.Tensor] = {}

    def choose(self, timestep: torch.Tensor | float) -> None:
        """Take the kernels of a timestep, or of one an image; raises ValueError where there are none of it."""
        wanted = timestep.flatten().tolist() if isinstance(timestep, torch.Tensor) else [timestep]
        places = [self._place(one) for one in wanted]
        self.places = places[:1] if len(set(places)) == 1 else places

    def choose_there(self, timestep: torch.Tensor) -> torch.Tensor:
        """`choose` without waiting for a device; gives zeros (1 or b,), and NaN where there is no kernel."""
        known = self._known_on(timestep.device)
        wanted = timestep.reshape(-1)[:1] if blocks.is_one_timestep(timestep) else timestep
        wanted = wanted.to(known.dtype)
        self.places = (known - wanted[:, None]).abs().argmin(dim=1)
        missed = (known.index_select(0, self.places) - wanted).abs()
        return torch.where(missed <= ROUNDING * wanted.abs().clamp(min=1.0), 0.0, float("nan"))

    def _known_on(self, device: torch.device) -> torch.Tensor:
        """The timesteps on a device: made at the first call, which a graph's warm-up is."""
        if device not in self._known:
            self._known[device] = torch.tensor(self.timesteps, device=device)
        return self._known[device]

    def _place(self, timestep: float) -> int:
        place = min(range(len(self.timesteps)), key=lambda i: abs(self.timesteps[i] - timestep))
        if not math.isclose(self.timesteps[place], timestep, rel_tol=ROUNDING, abs_tol=ROUNDING):
            known = ", ".join(f"{one:g}" for one in self.timesteps)
            raise ValueError(f"this UNet was folded for the timesteps {known}, not for {timestep:g}; fold it for those "
                             "that the scheduler uses.")  # fmt: skip
        return place

    def before(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook of the UNet."""
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        if not isinstance(timestep, torch.Tensor) or timestep.device.type == "cpu":
            self.choose(timestep)
            return None
        # Nothing can be raised from there, so a timestep that the UNet was not folded for gives NaN.
        zero = self.choose_there(timestep)[:, None, None, None]
        if args:
            return (args[0] + zero.to(args[0].dtype), *args[1:]), kwargs
        return args, kwargs | {"sample": kwargs["sample"] + zero.to(kwargs["sample"].dtype)}

    def after(self, unet: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the UNet."""
        self.places = None


def _geometry(conv: nn.Conv2d) -> dict[str, Any]:
    """A convolution's arguments; without memory, as its weights come from elsewhere."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    return {name: getattr(conv, name) for name in names} | {"bias": conv.bias is not None, "device": "meta"}


def convolve(conv: nn.Conv2d, x: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """`conv` of (b, c, h, w) with a kernel for each image, or with one for all of them."""
    if torch.compiler.is_exporting() and not isinstance(kernels.shape[0], int):  # the batch is free
        return _as_products(conv, x, kernels)
    if len(kernels) == 1:
        return _convolved(conv, x, kernels[0])
    if x.device.type == "cpu":  # a CPU's kernels for groups are up to a tenth slower than one call an image
        return torch.cat([_convolved(conv, *one) for one in zip(x.split(1), kernels, strict=True)])
    return _in_groups(conv, x, kernels)


def _in_groups(conv: nn.Conv2d, x: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """One call for all images: a kernel per image is a convolution in groups."""
    b, c, h, w = x.shape
    x, bias = x.reshape(1, b * c, h, w), None if conv.bias is None else conv.bias.repeat(b)
    out = F.conv2d(x, kernels.flatten(0, 1), bias, conv.stride, conv.padding, conv.dilation, groups=b)
    return out.reshape(b, conv.out_channels, *out.shape[2:])


def _convolved(conv: nn.Conv2d, x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, kernel, conv.bias, conv.stride, conv.padding, conv.dilation)


def _is_plain_inference(x: torch.Tensor) -> bool:
    """Whether a CPU computes now and nothing looks back at a kernel once it is used: no gradients, no graph made."""
    return (
        type(x) is torch.Tensor
        and x.device.type == "cpu"
        and not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())
    )


class _Kept(threading.local):
    """Memory that a thread keeps for the kernel in use: a fresh one a call costs a page fault for each 4 KiB."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)
        self.views: dict[tuple[int, torch.dtype], torch.Tensor] = {}


_kept = _Kept()


def _workspace(weight: torch.Tensor) -> torch.Tensor:
    """Room for one kernel, (1, out·in·h·w), the same at each call of a thread."""
    key = (weight.numel(), weight.dtype)
    if key not in _kept.views:
        with torch.inference_mode(False):  # what is made in it could not be written outside
            if _kept.memory.numel() < weight.nbytes:
                _kept.memory = torch.empty(weight.nbytes, dtype=torch.uint8, device=weight.device)
                _kept.views.clear()
            _kept.views[key] = _kept.memory[: weight.nbytes].view(weight.dtype).view(1, -1)
    return _kept.views[key]


def _as_products(conv: nn.Conv2d, x: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """One matrix product an image: a graph of it takes any batch, where a loop or groups would keep the traced one."""
    assert not isinstance(conv.padding, str), "a UNet's convolutions are padded by numbers"
    sizes = zip(x.shape[2:], conv.padding, conv.dilation, conv.kernel_size, conv.stride, strict=True)
    height, width = ((n + 2 * pad - d * (k - 1) - 1) // s + 1 for n, pad, d, k, s in sizes)
    patches = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # (b, in·h·w, pixels)
    out = kernels.flatten(2) @ patches
    out = out if conv.bias is None else out + conv.bias.view(1, -1, 1)
    return out.unflatten(2, (height, width))


def _required(time: torch.Tensor | None) -> torch.Tensor:
    if time is None:
        raise ValueError("a timestep gate needs a time embedding; call it through its ResNet unit.")
    return time


# ---------------------------------------------------------------------------------------------- the unit


class CondResnetBlock2D(ResnetBlock2D):
    """A ResNet with kernels of each image's own: on a CPU large images go through all of it one after the other.

    An image at a time, its maps stay in the cache, and the next one uses their memory and that of the kernel again.
    """

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None, *args: Any, **kwargs: Any) -> torch.Tensor:
        forward = super().forward
        if not _is_plain_inference(input_tensor) or len(input_tensor) == 1 or input_tensor[0].nbytes < LARGE:
            return forward(input_tensor, temb, *args, **kwargs)
        images = input_tensor.split(1)
        times = [temb] * len(images) if temb is None or len(temb) == 1 else temb.split(1)
        return torch.cat([forward(image, time, *args, **kwargs) for image, time in zip(images, times, strict=True)])


def replace(
    unit: nn.Module, siblings: Sequence[nn.Module] = (), gate: str = "input", original: bool = False
) -> nn.Module | None:
    """The ResNet unit with its block's kernels as experts, or None where no other layer has kernels of its shapes.

    With `original`, the unit's own kernel is an expert too, the first of them. That makes a difference where a graft
    gives the unit the kernel of another student, and the original's would be lost.
    """
    if gate not in GATES:
        raise ValueError(f"unknown gate {gate!r}; choose from {', '.join(GATES)}.")
    if not isinstance(original, bool):
        raise ValueError(f"original must be true or false, got {original!r}")
    others = [sibling for sibling in siblings if sibling is not unit]
    experts = {place: _experts(unit, others, place) for place in PLACES}
    if not any(experts.values()):
        return None
    if original:
        experts = {place: [getattr(unit, place), *convs] for place, convs in experts.items() if convs}
    unit = shared_copy(unit)
    for place, convs in experts.items():
        if convs:
            setattr(unit, place, CondConv2d(getattr(unit, place), convs, _time_channels(unit, gate)))
    if gate == "timestep":
        _listen(unit)
    elif type(unit) is ResnetBlock2D:
        unit.__class__ = CondResnetBlock2D
    return unit


def _experts(unit: nn.Module, others: Sequence[nn.Module], place: str) -> list[nn.Conv2d]:
    own = getattr(unit, place, None)
    if not isinstance(own, nn.Conv2d):
        return []
    candidates = [getattr(other, place, None) for other in others]
    return [conv for conv in candidates if isinstance(conv, nn.Conv2d) and conv.weight.shape == own.weight.shape]


def _time_channels(unit: Any, gate: str) -> int | None:
    if gate == "input":
        return None
    if unit.time_emb_proj is None:
        raise ValueError("this ResNet takes no time embedding; choose gate input.")
    return unit.time_emb_proj.in_features


def _listen(unit: nn.Module) -> None:
    """Convolutions see only the map, so the unit passes the time embedding on to them for the length of a call."""
    unit.register_forward_pre_hook(_tell_time, with_kwargs=True)
    unit.register_forward_hook(_forget_time)


def _tell_time(unit: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    time = args[1] if len(args) > 1 else kwargs["temb"]
    for _, conv in _gated_by_time(unit):
        conv.time = time[:1] if _all_alike(time) else time


def _forget_time(unit: nn.Module, args: Any, output: Any) -> None:
    for _, conv in _gated_by_time(unit):
        conv.time = None


def _all_alike(time: torch.Tensor) -> bool:
    """Whether one kernel does for the batch: `prepare` lets a call at one timestep have one row, expanded."""
    return torch.compiler.is_exporting() or len(time) == 1 or time.stride(0) == 0


def prepare(unet: nn.Module) -> None:
    """Where gates look at the time embedding, let them know a call at one timestep from its shape."""
    if any(next(_gated_by_time(module), None) for module in unet.modules()):
        blocks.share_one_timestep(unet)


def _gated_by_time(unit: nn.Module) -> Iterator[tuple[str, Any]]:
    for place in PLACES:
        conv = getattr(unit, place, None)
        if isinstance(conv, CondConv2d) and conv.gate == "timestep":
            yield place, conv


@contextmanager
def watched_gates(unet: nn.Module) -> Iterator[dict[str, list[float]]]:
    """How far the gates open in the calls of this block, by convolution: mean |2·σ(z) − 1| over the images of a call.

    A list has one number for each kernel, the own one first. A later call replaces an earlier one's.
    """
    opened: dict[str, list[float]] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, z: torch.Tensor) -> None:
            opened[name] = [round(x, 6) for x in torch.tanh(z.detach().float() / 2).abs().mean(0).tolist()]

        return hook

    convs = {name: module for name, module in unet.named_modules() if isinstance(module, CondConv2d)}
    handles = [conv.routing.register_forward_hook(look(name)) for name, conv in convs.items()]
    try:
        yield opened
    finally:
        for handle in handles:
            handle.remove()


# ---------------------------------------------------------------------------------------------- folding


@torch.no_grad()
def fold(unet: nn.Module, timesteps: Sequence[float]) -> nn.Module:
    """A copy of a UNet in which timestep gates are decided: exactly the same outputs at these timesteps.

    For one timestep every ResNet is a plain one again, and the copy can be saved; for several each convolution holds
    one kernel per timestep. All other tensors are shared with the UNet. Raises ValueError where nothing is gated by
    time, and where the time embedding depends on more than the timestep (SDXL's holds the prompt and the size too).
    """
    if not timesteps:
        raise ValueError("name at least one timestep to fold for.")
    if any(isinstance(module, FoldedConv2d) for module in unet.modules()):
        raise ValueError("this UNet is already folded; fold the student that it was made from.")
    times = blocks.time_embeddings(unet, timesteps)
    folded: Any = shared_copy(unet)
    decided = [unit for unit in blocks.iter_units(folded) if next(_gated_by_time(unit.modules[0]), None)]
    if not decided:
        raise ValueError("no convolution of this UNet is gated by the timestep; build it with gate timestep.")
    chosen = Timesteps(timesteps)
    for unit in decided:
        module: Any = unit.modules[0]
        for place, conv in list(_gated_by_time(module)):
            setattr(module, place, FoldedConv2d(conv, times, chosen) if len(times) > 1 else _plain(conv, times))
        _stop_listening(module)
    blocks.stop_sharing_timesteps(folded)
    if len(times) > 1:
        folded.register_forward_pre_hook(chosen.before, with_kwargs=True)
        folded.register_forward_hook(chosen.after)
    elif "edits" in getattr(folded, "config", {}):
        folded.register_to_config(edits=[edit for edit in folded.config["edits"] if not _is_gated_by_time(edit)])
    return folded


def _is_gated_by_time(edit: dict[str, Any]) -> bool:
    return edit.get("with") == "cond_conv" and edit["options"].get("gate") == "timestep"


def _plain(conv: CondConv2d, times: torch.Tensor) -> nn.Conv2d:
    plain = nn.Conv2d(**_geometry(conv))
    plain.weight, plain.bias = nn.Parameter(_decided(conv, times)[0]), conv.bias
    return plain


def _decided(conv: CondConv2d, times: torch.Tensor) -> torch.Tensor:
    return conv.mixed(conv.opened(times)).detach()


def _stop_listening(unit: Any) -> None:
    for hooks in (unit._forward_pre_hooks, unit._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook in (_tell_time, _forget_time)]:
            del hooks[key]
            unit._forward_pre_hooks_with_kwargs.pop(key, None)

"""How much memory a stage takes to train, counted on the meta device, and whether that much is free."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from asdm.data.encoder import chunk_size
from asdm.distill import losses
from asdm.distill.precision import frozen_dtype, rounded_by_autocast
from asdm.distill.settings import DistillSettings, micro_batch
from asdm.distill.stages import ResolvedRecipe, Stage
from asdm.distill.task import DistillationTask, Objective
from asdm.measure import machine
from asdm.measure.device import is_gpu
from asdm.models import example_inputs
from asdm.models.components import components_of
from asdm.models.execution import dtype_of
from asdm.models.families import Family
from asdm.models.vae import meta_vae, needs_fp32
from asdm.records.distill import MemoryEstimate, StagePlan
from asdm.unet import flops
from asdm.unet.shapes import KnownShapes
from asdm.unet.surgery import Applied


class TooLittleMemory(ValueError):
    """A stage that does not fit into free memory. Remedies follow the semicolon in the message."""


LOWERED = {"conv2d", "linear", "addmm", "matmul", "__matmul__", "bmm", "baddbmm"}  # by autocast, of what a UNet calls
RAISED_ON_GPU = {"group_norm", "layer_norm", "softmax"}  # to fp32
# A bound for what can be trained without counting: SD 1.5 saves 340 values a latent pixel and channel of its stem.
MOST_VALUES, MOST_VAE_VALUES = 2000, 16


def estimate_memory(
    recipe: ResolvedRecipe,
    stage: Stage,
    student: Any,
    applied: Applied,
    terms: tuple[str, ...],
    places: Mapping[str, Any],
    settings: DistillSettings,
    world: int,
) -> MemoryEstimate:
    """Bytes on one device, counted on the meta device, without terms' networks and kernels' workspaces."""
    half = frozen_dtype(settings)
    terms = tuple(name for name in terms if not losses.needs_network(name))
    objective = Objective(terms, places, "epsilon", stage.mode, stage.normalise)
    task = DistillationTask(student, recipe.meta_teacher, applied, objective)
    encoders = _encoders(recipe.family, half)
    learning = sum(p.nbytes for p in student.parameters() if p.requires_grad)
    moments = 0.25 if settings.optimizer == "adamw8bit" else 1.0
    return MemoryEstimate(
        weights=_weight_bytes((student, recipe.meta_teacher), half),
        encoders=sum(p.nbytes for module in encoders for p in module.parameters()),
        gradients=learning * (2 if world > 1 else 1),  # DDP's buckets hold them a second time
        optimizer=int(2 * learning * moments),
        average=learning if settings.ema else 0,
        activations=_activation_bytes(task, recipe.family, settings, world),
        encoding=0
        if (settings.data or "").startswith("latents")
        else _encoding_bytes(encoders, recipe.family, settings, world),
    )


def _weight_bytes(models: Iterable[nn.Module], half: torch.dtype | None) -> int:
    """Bytes of the parameters; what is shared counts once."""
    models = tuple(models)
    halved = {p.untyped_storage()._cdata for p in rounded_by_autocast(models)} if half else set()
    parameters = {p.untyped_storage()._cdata: p for model in models for p in model.parameters()}
    return sum(p.nbytes // (2 if storage in halved else 1) for storage, p in parameters.items())


# ---------------------------------------------------------------------------------------------- activations


def _activation_bytes(task: DistillationTask, family: Family, settings: DistillSettings, world: int) -> int:
    """What one forward of the task saves for its backward."""
    micro = micro_batch(settings, world)
    inputs = example_inputs.unet_inputs(family, batch=micro, size=settings.size, device="meta")
    noisy, timesteps = inputs["sample"], torch.empty(micro, dtype=torch.long, device="meta")
    more = inputs.get("added_cond_kwargs", {})
    args = (noisy, timesteps, inputs["encoder_hidden_states"], torch.empty_like(noisy), noisy.new_empty(micro))
    args = (*args, *(more[name] for name in ("text_embeds", "time_ids") if name in more))
    student: Any = task.student
    if settings.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    return saved_bytes(lambda: task(*args), student, MetaAutocast(settings))


class MetaAutocast(TorchFunctionMode):
    """What a run's autocast and attention kernels save, on the meta device, which autocast passes over.

    Attention has a fused kernel wherever a UNet is trained, but not on the meta device, which would save its scores.
    """

    def __init__(self, settings: DistillSettings) -> None:
        super().__init__()
        self.dtype = None if settings.dtype == "fp32" else dtype_of(settings.dtype)
        self.raised = set() if settings.device == "cpu" else RAISED_ON_GPU
        self.halved = frozen_dtype(settings) is not None
        self.weights: dict[int, torch.Tensor] = {}  # frozen weights that are in half precision before the call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        attends = func is F.scaled_dot_product_attention
        if self.dtype and (attends or name in LOWERED):
            args, kwargs = tree_map(self._lowered, (args, kwargs))
        elif self.dtype and name in self.raised:
            args, kwargs = tree_map(_in_fp32, (args, kwargs))
        if attends:
            return _FusedAttention.apply(*(args[:3] if len(args) >= 3 else map(kwargs.get, ("query", "key", "value"))))
        return func(*args, **kwargs)

    def _lowered(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        lowered = value.to(self.dtype)
        if self.halved and isinstance(value, nn.Parameter) and not value.requires_grad:
            self.weights[lowered.untyped_storage()._cdata] = lowered
        return lowered


def _in_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class _FusedAttention(torch.autograd.Function):
    """Saves what flash attention does: its inputs, its output, and a number per query and head."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out


def saved_bytes(call: Callable[[], Any], module: nn.Module, autocast: MetaAutocast | None = None) -> int:
    """Bytes that `call` saves for its backward, besides `module`'s own tensors; works on the meta device."""
    own = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and not (autocast and storage._cdata in autocast.weights):
            storages[storage._cdata] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, autocast or nullcontext(), KnownShapes():
        result = call()
    total = sum(storage.nbytes() for storage in storages.values())
    del result
    return total


# ---------------------------------------------------------------------------------------------- encoders


def _encoders(family: Family, half: torch.dtype | None) -> list[nn.Module]:
    """Text encoder and VAE on the meta device, in the precision that they have in training."""
    parts = [part.module for part in components_of(family) if part.name.startswith("text_encoder")]
    vaes = [meta_vae(family.vae)] if family.vae else []
    if half:
        parts = [part.to(half) for part in parts]
        vaes = [vae if needs_fp32(family.vae, half) else nn.Module.to(vae, half) for vae in vaes]
    return parts + vaes


def _encoding_bytes(encoders: Iterable[nn.Module], family: Family, settings: DistillSettings, world: int) -> int:
    """Peak of activations while a chunk of pictures, or the captions of a batch, is encoded."""
    from diffusers import AutoencoderKL

    side, own = settings.size or family.size, settings.batch // world
    chunk = min(chunk_size(side, settings.micro_batch), own)
    peaks = [0]
    tokens = torch.ones(own, family.tokens, device="meta", dtype=torch.long)
    for model in encoders:
        pictures = torch.empty(chunk, 3, side, side, device="meta", dtype=next(model.parameters()).dtype)
        module, inputs = (model.encoder, pictures) if isinstance(model, AutoencoderKL) else (model, tokens)
        peaks.append(flops.count(module, (inputs,), {}).peak_activation_bytes)
    return max(peaks)


# ---------------------------------------------------------------------------------------------- before a run


def check_memory(
    recipe: ResolvedRecipe, stages: Iterable[Stage], settings: DistillSettings, world: int,
    preview: Callable[..., StagePlan],
) -> None:  # fmt: skip
    """Raise ValueError, before anything is loaded, for a stage that needs more memory than is free."""
    if is_gpu(settings.device):
        torch.cuda.empty_cache()  # what an earlier run of this process left is free
    free = machine.free_memory_bytes(settings.device)
    for stage in () if _surely_fits(recipe, settings, world, free) else stages:
        memory = preview(recipe, stage, settings, world).memory
        if memory.total > free:
            raise TooLittleMemory(_too_little(stage, memory, settings, micro_batch(settings, world), free))


def _surely_fits(recipe: ResolvedRecipe, settings: DistillSettings, world: int, free: int) -> bool:
    """Whether the run is so small that counting would take longer than it could help."""
    family, micro = recipe.family, micro_batch(settings, world)
    side = settings.size or family.size
    latents = micro * (side // family.vae_factor) ** 2
    values = 8 * sum(p.numel() for p in recipe.meta_teacher.parameters())
    values += MOST_VALUES * family.unet["block_out_channels"][0] * latents
    if family.vae:
        values += (
            MOST_VAE_VALUES * family.vae["block_out_channels"][0] * chunk_size(side, settings.micro_batch) * side**2
        )
    return 4 * values < free / 2


def _too_little(stage: Stage, memory: MemoryEstimate, settings: DistillSettings, micro: int, free: int) -> str:
    remedies = {
        "a smaller --micro-batch": micro > 1,
        "--gradient-checkpointing": not settings.gradient_checkpointing,
        "--dtype bf16": settings.dtype == "fp32" and settings.device != "cpu",
        "--optimizer adamw8bit": settings.optimizer == "adamw"
        and memory.optimizer > memory.total / 4
        and is_gpu(settings.device)
        and find_spec("bitsandbytes") is not None,
        "--ema 0": memory.average > memory.total / 8,
        "a smaller --size": True,
    }
    return (
        f"training the stage {stage.name} needs about {memory.total / 2**30:.1f} GiB on {settings.device}, "
        f"{memory.peak / 2**30:.1f} GiB of them for {micro} pictures a forward, and {max(free, 0) / 2**30:.1f} GiB are "
        f"free; choose {' or '.join(remedy for remedy, helps in remedies.items() if helps)}, or free some memory."
    )

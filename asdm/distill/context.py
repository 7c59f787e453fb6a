"""What all stages of a run share, loaded once, and how a run reports its progress."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from asdm.data import datasets
from asdm.data.drawn import drawn
from asdm.data.encoder import Encoder, check_encoders, chunk_size
from asdm.data.settings import selection_of
from asdm.distill import losses
from asdm.distill.precision import frozen_dtype
from asdm.distill.settings import DistillSettings, micro_batch
from asdm.distill.stages import ResolvedRecipe
from asdm.measure.device import use_device
from asdm.models import example_inputs, loading
from asdm.models.loading import weights_sha256
from asdm.models.pipeline import pipeline
from asdm.models.settings import PictureSetup, checkpoint_of
from asdm.utils.progress import Tell


@dataclass
class TrainProgress:
    """The state of a run after a step, as passed to the progress callback."""

    stage: str
    step: int
    steps: int
    terms: dict[str, float] = field(default_factory=dict)  # weighted: their shares of the loss
    images_per_s: float = 0.0
    eta_s: float | None = None
    saved_step: int | None = None
    shares: dict[str, float] = field(default_factory=dict)  # of data, encode, compute and rest in the time so far


ProgressCallback = Callable[[TrainProgress], None]


@dataclass
class TrainContext:
    """What all stages share: accelerator, teacher, encoders, data and the run's folder."""

    accelerator: Any
    recipe: ResolvedRecipe
    settings: DistillSettings
    folder: Path
    teacher: Any
    pipeline: Any  # the teacher's pipeline
    encoder: Encoder
    data: Any
    alphas: torch.Tensor  # ᾱ_t of every timestep
    prediction_type: str
    teacher_sha256: str
    on_progress: ProgressCallback
    data_name: str = ""  # what is opened: pictures that the teacher drew where `settings.data` are prompts


def load_context(
    recipe: ResolvedRecipe, settings: DistillSettings, folder: Path, accelerator: Any, on_progress: ProgressCallback
) -> TrainContext:
    """Load the teacher with its encoders, and open the data."""
    family = recipe.family
    assert settings.data is not None, "distill() fills it in"
    on_progress(TrainProgress("loading the teacher", 0, settings.steps))
    device = str(accelerator.device)
    setup = PictureSetup(**checkpoint_of(settings), device=device, seed=settings.seed, size=settings.size)
    side = example_inputs.latent_size(family, settings.size) * family.vae_factor
    opened = drawn(settings.data, family, settings, side, device, _telling(on_progress, settings))
    data = datasets.open_source(opened, settings.split, side, selection_of(settings))
    teacher: Any = loading.load_teacher(family, setup)
    teacher.requires_grad_(False)
    diffusers_pipeline = pipeline(family, teacher, setup)
    prediction_type = diffusers_pipeline.scheduler.config.prediction_type
    if prediction_type not in losses.PREDICTIONS:
        raise ValueError(
            f"{family.name} predicts {prediction_type!r}; asdm distill supports {' and '.join(losses.PREDICTIONS)}."
        )
    alphas = diffusers_pipeline.scheduler.alphas_cumprod.to(accelerator.device).float()
    losses.check_schedule(alphas, prediction_type, family.name)
    own = micro_batch(settings, accelerator.num_processes)
    encoder = Encoder(diffusers_pipeline, chunk_size(side, settings.micro_batch), own)
    check_encoders(data, settings.data, encoder, family)
    for name in losses.with_network(name for stage in recipe.stages for name in stage.weights):
        losses.load(name).check_network(settings)  # here, not after the hours that earlier stages take
    if dtype := frozen_dtype(settings):
        encoder.to_dtype(dtype)
    return TrainContext(
        accelerator=accelerator,
        recipe=recipe,
        settings=settings,
        folder=folder,
        teacher=teacher,
        pipeline=diffusers_pipeline,
        encoder=encoder,
        data=data,
        alphas=alphas,
        prediction_type=prediction_type,
        teacher_sha256=weights_sha256(teacher),
        on_progress=on_progress,
        data_name=opened,
    )


def _telling(on_progress: ProgressCallback, settings: DistillSettings) -> Tell:
    return lambda stage, done, eta_s: on_progress(TrainProgress(stage, done, settings.steps, eta_s=eta_s))


def make_accelerator(settings: DistillSettings) -> Any:
    """accelerate's Accelerator, for the processes that `accelerate launch` started, or for this one alone.

    It takes torch's current GPU, so one that the settings name by its number becomes that first.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if AcceleratorState._shared_state and not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)  # left by an earlier run in this process
    kind, _, index = settings.device.partition(":")
    if index and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"several processes choose a device each, so --device must be {kind}, got {settings.device}.")
    use_device(settings.device)
    precision = {"fp32": "no"}.get(settings.dtype, settings.dtype)
    return Accelerator(mixed_precision=precision, cpu=settings.device == "cpu")


def is_main_process() -> bool:
    """Whether this process is the one that writes files and progress."""
    return int(os.environ.get("RANK", "0")) == 0

"""The settings of `asdm distill`, and their validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from asdm.data.settings import SOURCES, Selection, Split, Workers
from asdm.models.settings import DTYPES, Device, SquareSize, Threads, WholeCheckpoint
from asdm.utils.settings import Option, check_bounds

SCHEDULES = ("constant", "linear", "cosine")
OPTIMIZERS = ("adamw", "adamw8bit")
LearningRate = Annotated[float, Option("Peak learning rate of AdamW.", at_least=0)]
TrainingDtype = Annotated[str, Option("dtype of the forward and backward pass: fp32, bf16 or fp16.", choices=DTYPES)]
TrainingSeed = Annotated[int, Option("Seed of everything random.", at_least=0)]
CheckpointSeconds = Annotated[
    float, Option("Seconds between checkpoints; 0: after every step.", flag="--checkpoint-every", at_least=0)
]


@dataclass(frozen=True)
class DistillSettings(WholeCheckpoint, Selection):
    """How a recipe is run. `batch` is a step's, over all processes.

    What is neither in a run's identity nor its tuning (`micro_batch`, `workers`, …) changes no more than rounding.
    """

    data: Annotated[str | None, Option(f"{SOURCES}; default: emoji for the mini, which knows nothing else.")] = None
    steps: Annotated[int, Option("Optimizer steps of all stages together.", at_least=1)] = 10_000
    split: Split = "train"
    seed: TrainingSeed = 0
    device: Device = "cpu"
    dtype: TrainingDtype = "fp32"
    size: SquareSize = None
    batch: Annotated[int, Option("Pictures per step, over all processes.", at_least=1)] = 16
    micro_batch: Annotated[
        int | None,
        Option("Pictures per forward pass of a process; default: all of its share of the batch.", at_least=1),
    ] = None
    learning_rate: LearningRate = 1e-4
    schedule: Annotated[
        str, Option("Learning rate after the warm-up: constant, linear or cosine.", choices=SCHEDULES)
    ] = "cosine"
    warm_up: Annotated[
        int | None, Option("Steps of warm-up; default: a twentieth of a stage, at most 500.", at_least=0)
    ] = None
    optimizer: Annotated[str, Option("adamw, or adamw8bit (needs bitsandbytes).", choices=OPTIMIZERS)] = "adamw"
    weight_decay: Annotated[float, Option("Weight decay of AdamW.", at_least=0)] = 0.01
    clip: Annotated[float, Option("Largest gradient norm; 0: no clipping.", at_least=0)] = 1.0
    ema: Annotated[
        float, Option("Decay of the moving average that becomes the student; 0: none.", at_least=0, below=1)
    ] = 0.999
    min_snr: Annotated[
        float, Option("γ of Min-SNR weighting of the denoising and output terms; 0: off.", at_least=0)
    ] = 5.0
    caption_dropout: Annotated[float, Option("Share of captions that are left out.", at_least=0, below=1)] = 0.1
    balance: Annotated[bool, Option("Scale every loss term to the size of the first, so that none dominates.")] = False
    spike: Annotated[
        float, Option("Stop when a loss term exceeds its running mean this many times; 0: never.", at_least=0)
    ] = 20.0
    vgg: Annotated[
        str | None,
        Option("Network of the perceptual term: mini, imagenet, or a folder; default: mini for emoji, else imagenet."),
    ] = None
    gradient_checkpointing: Annotated[
        bool, Option("Save memory by computing activations a second time in the backward pass.")
    ] = False
    compile: Annotated[bool, Option("Compile student and teacher, unit by unit (minutes before the first step).")] = (
        False
    )
    deterministic: Annotated[
        bool, Option("Use algorithms that compute the same bits every time; slower on a GPU, no change on a CPU.")
    ] = False
    workers: Workers = None
    threads: Threads = None
    checkpoint_s: CheckpointSeconds = 600.0
    keep: Annotated[int, Option("How many checkpoints to keep.", at_least=1)] = 2
    validate_every: Annotated[
        int, Option("Steps between pictures of teacher and student at fixed seeds; 0: none.", at_least=0)
    ] = 0
    validate_captions: int = 4
    units: Annotated[str | None, Option("Library of units (asdm distill-units) that the student starts from.")] = None
    tensorboard: Annotated[bool, Option("Write the log for TensorBoard as well.")] = False


@dataclass(frozen=True)
class UnitSettings(WholeCheckpoint):
    """How `asdm distill-units` makes replaced units."""

    options: Annotated[
        str, Option("Replacements to make, with all their settings, where no plan is named: all, or NAME,NAME,….")
    ] = "all"
    data: Annotated[str | None, Option(f"{SOURCES}; default: emoji for the mini.")] = None
    split: Split = "train"
    calibration: Annotated[
        int, Option("Noised pictures to choose and refit on; every fourth batch judges instead.", at_least=8)
    ] = 256
    steps: Annotated[int, Option("Steps of block-local distillation after that; 0: none.", at_least=0)] = 0
    batch: Annotated[int, Option("Pictures per step.", at_least=1)] = 16
    learning_rate: LearningRate = 5e-4
    seed: TrainingSeed = 0
    device: Device = "cpu"
    size: SquareSize = None
    workers: Workers = None
    threads: Threads = None


def check_settings(settings: DistillSettings) -> None:
    """Raises ValueError naming the first setting that is out of its bounds, and its choices."""
    from asdm.models import execution

    check_bounds(settings)
    execution.check_device(settings.device)
    if settings.dtype == "fp16" and settings.device == "cpu":
        raise ValueError("fp16 autocast needs an accelerator; choose --dtype bf16 or fp32 on a CPU.")


def micro_batch(settings: DistillSettings, world: int) -> int:
    """Images per forward of one process; raises ValueError where the batch does not split evenly."""
    own, rest = divmod(settings.batch, world)
    micro = min(settings.micro_batch or own, own)
    if rest or micro < 1 or own % micro:
        raise ValueError(
            f"--batch must be a multiple of {world * max(micro, 1)} for {world} processes and micro-batches of "
            f"{micro or 1}, got {settings.batch}."
        )
    return micro

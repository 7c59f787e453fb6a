"""What a model runs on: weights, device, dtype, threads, seed, batch and size."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, fields
from typing import Annotated, Any

from asdm.utils import sizes
from asdm.utils.settings import Option

Weights = Annotated[
    str | None,
    Option(
        "'random', a diffusers folder, a .safetensors checkpoint or a hub id; default: the family's own weights, and "
        "random ones where values do not matter and a family without any is named."
    ),
]
Config = Annotated[
    str | None,
    Option("Family or folder whose configs (and tokenizer) a checkpoint has, where its shapes do not tell."),
]
Variant = Annotated[
    str | None,
    Option("Variant of a folder's weight files, such as fp16 or non_ema; default: plain files, or the only variant."),
]
Lora = Annotated[list[str] | None, Option("LoRA to fuse, as FILE or FILE:SCALE; may be repeated.")]
Vae = Annotated[str | None, Option("Folder, file or hub id of a VAE to use instead of the checkpoint's.")]
ClipSkip = Annotated[
    int | None,
    Option(
        "Text encoder's layer to stop at, counted from its end as in A1111: 1 is the last, 2 skips one.", at_least=1
    ),
]
TextualInversion = Annotated[
    list[str] | None, Option("File of a textual inversion, used by its name in prompts; may be repeated.")
]
PredictionType = Annotated[
    str | None,
    Option(
        "What the UNet predicts, epsilon or v_prediction; default: what the scheduler's config or the checkpoint says.",
        choices=("epsilon", "v_prediction"),
    ),
]
Device = Annotated[str, Option("cpu, cuda, cuda:1, …; default: the accelerator if there is one.", automatic=True)]
DTYPES = ("fp32", "bf16", "fp16")
Dtype = Annotated[str, Option("fp32, bf16 or fp16.", choices=DTYPES)]
TimedDtype = Annotated[
    str, Option("fp32, bf16 or fp16; default: fp16 on a GPU, else fp32.", choices=DTYPES, automatic=True)
]
Threads = Annotated[int | None, Option("CPU threads; default: what torch chooses.", at_least=1)]
Size = Annotated[
    sizes.Size | None,
    Option("Pixels per side, or WIDTHxHEIGHT; default: the size the family was made for.", parse=sizes.parse),
]
SquareSize = Annotated[int | None, Option("Pixels per side; default: the size the family was made for.")]
Backend = Annotated[
    str,
    Option(
        "eager, cudagraph, compiled, compiled:reduce-overhead, compiled:max-autotune, onnxruntime, tensorrt, openvino, "
        "or fake (made-up times, needs no weights).",
        seam="asdm.measure.backends",
    ),
]


@dataclass(frozen=True)
class Checkpoint:
    """Which weights a model has."""

    weights: Weights = None
    _: KW_ONLY
    config: Config = None
    variant: Variant = None
    lora: Lora = None


@dataclass(frozen=True)
class WholeCheckpoint(Checkpoint):
    """Which weights a model and its VAE and text encoder have, for what draws pictures or reads captions."""

    _: KW_ONLY
    vae: Vae = None
    clip_skip: ClipSkip = None
    textual_inversion: TextualInversion = None
    prediction_type: PredictionType = None


BESIDE_THE_UNET = ("vae", "clip_skip", "textual_inversion", "prediction_type")  # of a WholeCheckpoint


@dataclass(frozen=True)
class Setup(Checkpoint):
    """What a measurement runs on; all of it is recorded in what it produces."""

    device: Device = "cpu"
    dtype: Dtype = "fp32"
    threads: Threads = None
    seed: Annotated[int, Option("Seed of random weights and inputs.")] = 0
    batch: Annotated[int, Option("Images per UNet call.", at_least=1)] = 1
    size: Size = None


SCHEDULERS = {
    "ddim": "DDIMScheduler", "ddpm": "DDPMScheduler", "pndm": "PNDMScheduler", "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler", "heun": "HeunDiscreteScheduler",
    "dpm": "DPMSolverMultistepScheduler", "dpm_sde": "DPMSolverMultistepScheduler sde-dpmsolver++",
    "unipc": "UniPCMultistepScheduler", "lcm": "LCMScheduler",
}  # fmt: skip
"""diffusers' class, and its `algorithm_type` where that is not the usual one: what `drawing.sampler_mark` gives."""


def sampler_named(name: str) -> str:
    """The mark of a sampler; raises ValueError for an unknown name."""
    if name not in SCHEDULERS:
        raise ValueError(f"unknown scheduler {name!r}; choose from {', '.join(SCHEDULERS)}.")
    return SCHEDULERS[name]


@dataclass(frozen=True)
class PictureSetup(WholeCheckpoint, Setup):
    """The same for what draws pictures or reads captions."""


def checkpoint_of(settings: Checkpoint) -> dict[str, Any]:
    """What settings say about their checkpoint, to make others of it."""
    return {
        field.name: getattr(settings, field.name) for field in fields(WholeCheckpoint) if hasattr(settings, field.name)
    }


@dataclass(frozen=True)
class GenerateSettings(PictureSetup):
    """How `asdm generate` draws a picture."""

    steps: Annotated[int, Option("Denoising steps.", at_least=1)] = 30
    guidance_scale: Annotated[
        float | None, Option("Classifier-free guidance scale; default: the family's.", at_least=0)
    ] = None
    negative_prompt: Annotated[str | None, Option("What not to draw.", flag="--negative")] = None
    scheduler: Annotated[
        str | None,
        Option(
            f"{', '.join(SCHEDULERS)}; default: the weights' own.",
            choices=tuple(SCHEDULERS),
        ),
    ] = None
    init_image: Annotated[str | None, Option("Image file to begin from instead of noise.")] = None
    strength: Annotated[
        float, Option("How much of the initial image is redrawn, up to 1 (all of it).", above=0, at_most=1)
    ] = 0.8
    control: Annotated[str | None, Option("Folder or hub id of a ControlNet of the family.")] = None
    control_image: Annotated[str | None, Option("Image file for the ControlNet.")] = None

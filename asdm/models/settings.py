"""What a model runs on: weights, device, dtype, threads, seed, batch and size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from asdm.utils.settings import Option

Weights = Annotated[
    str | None, Option("'random', a diffusers folder or a hub id; default: the family's own weights, else random.")
]
Device = Annotated[str, Option("cpu, cuda, cuda:1, …; default: the accelerator if there is one.", automatic=True)]
DTYPES = ("fp32", "bf16", "fp16")
Dtype = Annotated[str, Option("fp32, bf16 or fp16.", choices=DTYPES)]
TimedDtype = Annotated[
    str, Option("fp32, bf16 or fp16; default: fp16 on a GPU, else fp32.", choices=DTYPES, automatic=True)
]
Threads = Annotated[int | None, Option("CPU threads; default: what torch chooses.", at_least=1)]
Size = Annotated[int | None, Option("Pixels per side; default: the size the family was made for.")]
Backend = Annotated[
    str,
    Option(
        "eager, cudagraph, compiled, compiled:reduce-overhead, compiled:max-autotune, onnxruntime, tensorrt, openvino, "
        "or fake (made-up times, needs no weights).",
        seam="asdm.measure.backends",
    ),
]


@dataclass(frozen=True)
class Setup:
    """What a measurement runs on; all of it is recorded in what it produces."""

    weights: Weights = None
    device: Device = "cpu"
    dtype: Dtype = "fp32"
    threads: Threads = None
    seed: Annotated[int, Option("Seed of random weights and inputs.")] = 0
    batch: Annotated[int, Option("Images per UNet call.", at_least=1)] = 1
    size: Size = None


SCHEDULERS = {
    "ddim": "DDIMScheduler", "ddpm": "DDPMScheduler", "pndm": "PNDMScheduler", "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler", "heun": "HeunDiscreteScheduler",
    "dpm": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler", "lcm": "LCMScheduler",
}  # fmt: skip


@dataclass(frozen=True)
class GenerateSettings(Setup):
    """How `asdm generate` draws a picture."""

    steps: Annotated[int, Option("Denoising steps.", at_least=1)] = 30
    guidance_scale: Annotated[
        float | None, Option("Classifier-free guidance scale; default: the family's.", at_least=0)
    ] = None
    negative_prompt: Annotated[str | None, Option("What not to draw.", flag="--negative")] = None
    scheduler: Annotated[
        str | None,
        Option(
            "ddim, ddpm, pndm, euler, euler_a, heun, dpm, unipc or lcm; default: the weights' own.",
            choices=tuple(SCHEDULERS),
        ),
    ] = None
    init_image: Annotated[str | None, Option("Image file to begin from instead of noise.")] = None
    strength: Annotated[
        float, Option("How much of the initial image is redrawn, up to 1 (all of it).", above=0, at_most=1)
    ] = 0.8
    control: Annotated[str | None, Option("Folder or hub id of a ControlNet of the family.")] = None
    control_image: Annotated[str | None, Option("Image file for the ControlNet.")] = None
    height: int | None = None  # where pictures are not square; `size` is their width then

    @property
    def width_and_height(self) -> tuple[int | None, int | None]:
        """Pixels; None: the family's own size."""
        return self.size, self.size if self.height is None else self.height

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


@dataclass(frozen=True)
class GenerateSettings(Setup):
    """How `asdm generate` draws a picture."""

    steps: Annotated[int, Option("Denoising steps.", at_least=1)] = 30
    guidance_scale: Annotated[
        float | None, Option("Classifier-free guidance scale; default: the family's.", at_least=0)
    ] = None

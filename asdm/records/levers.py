"""`python -m benchmarks.levers` and `asdm generate --fast`: what makes an image faster, and by how much."""

from __future__ import annotations

from typing import Literal

from asdm.records.measurement import Estimate, Run
from asdm.utils.io import Frozen, later
from asdm.utils.sizes import Size

Runtime = Literal["eager", "compiled", "onnxruntime", "openvino"]


class Levers(Frozen):
    """How a pipeline's UNet runs: every lever at one of its positions."""

    student: str | None = None  # folder, plan or preset in the teacher's place
    schedule: str | None = None
    runtime: Runtime = "eager"
    precision: Literal["fp32", "bf16"] = "fp32"  # that a runtime computes in
    eight_bits: bool = False  # graphs in 8 bits, by the runtime's own quantiser
    keep_memory: bool = False  # freed memory is kept


class Lever(Frozen):
    """One lever moved alone, against plain eager PyTorch; a factor above 1 is faster."""

    name: str
    levers: Levers
    factor: Estimate  # plain image / this image, composed of the steps timed in pairs, text encoder and VAE
    pass_s: dict[str, float]  # pass → median seconds of a step
    error: float | None = None  # root mean square of a full step's output less eager's, as a share of that
    in_product: bool = False


class LeversResult(Run, schema="asdm.levers/1"):
    """`asdm.levers/1`: each lever's factor on an image's time, and all together on whole images from prompt to pixels.

    `product` is measured on whole images of all steps; `schedule_in_product` is the schedule's own factor in the
    product's runtime and precision.
    """

    weights: str
    size: Size
    steps: int
    sampler: str
    guidance_scale: float
    plain_step_s: float  # one guided UNet call
    around_s: float  # text encoder and VAE
    levers: tuple[Lever, ...]
    max_error: float  # of a lever in the product
    chosen: Levers
    schedule_in_product: Estimate | None = None
    product: Estimate | None = None
    plain_image_s: tuple[float, ...] = ()
    fast_image_s: tuple[float, ...] = ()
    left_out: dict[str, str] = later({})  # lever → why

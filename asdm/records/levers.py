"""`python -m benchmarks.levers` and `asdm generate --fast`: what makes an image faster, and by how much."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from asdm.records.measurement import Amount, Positive, Ratio, Run, Seconds
from asdm.utils.record import Frozen, later
from asdm.utils.sizes import Size

Runtime = Literal["eager", "compiled", "onnxruntime", "openvino"]


class Levers(Frozen):
    """How a pipeline's UNet runs: every lever at one of its positions."""

    student: str | None = None  # folder, plan or preset in the teacher's place
    schedule: str | None = None
    runtime: Runtime = "eager"
    precision: Literal["fp32", "bf16"] = "fp32"  # that a runtime computes in
    eight_bits: bool = False  # graphs in 8 bits, by the runtime's own quantiser
    decoder: bool = False  # the VAE's decoder runs there as well, in the same precision
    keep_memory: bool = False  # freed memory is kept


class Lever(Frozen):
    """One lever moved alone, against plain eager PyTorch; a factor above 1 is faster."""

    name: str
    levers: Levers
    factor: Ratio  # plain image / this image, composed of the steps timed in pairs, text encoder and VAE
    pass_s: dict[str, Seconds]  # pass → median seconds of a step
    error: Amount | None = None  # root mean square of a full step's output less eager's, as a share of that
    in_product: bool = False


class LeversResult(Run, schema="asdm.levers/1"):
    """`asdm.levers/1`: each lever's factor on an image's time, and all together on whole images from prompt to pixels.

    `product` is measured on whole images of all steps; `schedule_in_product` is the schedule's own factor in the
    product's runtime and precision.
    """

    weights: str
    size: Size
    steps: Annotated[int, Field(ge=1)]
    sampler: str
    guidance_scale: Amount
    plain_step_s: Positive  # one guided UNet call
    around_s: Seconds  # text encoder and VAE
    levers: tuple[Lever, ...]
    max_error: Amount  # of a lever in the product
    chosen: Levers
    schedule_in_product: Ratio | None = None
    product: Ratio | None = None
    plain_image_s: tuple[Positive, ...] = ()
    fast_image_s: tuple[Positive, ...] = ()
    left_out: dict[str, str] = later({})  # lever → why

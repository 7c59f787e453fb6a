"""`asdm build` and `asdm export`: what a student consists of, and how near an export's output is to PyTorch's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from asdm.records.measurement import Count
from asdm.utils.record import Frozen, Record, later
from asdm.utils.sizes import Size


class Tensors(Frozen):
    """Some of a model's parameters: names, how many numbers, and their bytes."""

    names: tuple[str, ...]
    params: Count
    bytes: Count


class FreezeAudit(Frozen):
    """Which of a student's parameters learn, which are frozen, and which are the teacher's own memory."""

    trainable: Tensors
    frozen: Tensors
    shared_with_teacher: Tensors


class DiffRow(Frozen):
    """A unit or glue part of the teacher, and whether it stays, goes or is replaced in the student."""

    fqn: str
    label: str
    kind: str
    block: str  # empty for glue outside the blocks
    layer: int | None
    fate: Literal["stays", "goes", "replaced"]
    replacement: str | None
    student_fqn: str | None
    params: Count
    macs: Count
    student_params: Count
    student_macs: Count


class BuildResult(Record, schema="asdm.build/1"):
    """`asdm.build/1`: what a student consists of."""

    name: str
    family: str
    weights: str
    params: Count
    macs: Count
    teacher_params: Count
    teacher_macs: Count
    removed: tuple[str, ...]
    replaced: dict[str, str]
    name_map: dict[str, str]  # student's fqn → teacher's fqn
    plain_diffusers: bool
    plan_sha256: str
    warning: str | None = later(None)
    prediction_type: str = later("epsilon")  # the teacher's
    zero_terminal_snr: bool = later(False)  # whether its noise schedule ends in pure noise
    vae_factor: Annotated[int, Field(ge=1)] = later(8)  # pixels per latent pixel of the teacher's VAE
    tokens: Annotated[int, Field(ge=1)] = later(77)  # of a prompt
    stage1: str | None = None  # where the grafted blocks' weights come from
    audit: FreezeAudit | None = None
    diff: tuple[DiffRow, ...] = ()


class LoaderClaim(Frozen):
    """What a program does with an exported file: it loads it, refuses it, or runs it as something that it is not."""

    program: str
    verdict: Literal["loads", "refuses", "wrong"]
    why: str


class GraphValue(Frozen):
    """What a graph takes or gives for one module of a place: so many of `inherited_0`, … or `kept_0`, … in order."""

    kind: str  # unit, block, sampler, self_attention or cross_attention
    fqn: str
    residual: bool = False
    module: Count = 0
    tensors: Count
    structure: str  # of the arrays, as torch's pytree writes it


class PassGraphFile(Frozen):
    """One way in which a schedule calls a network, as a static graph."""

    file: Annotated[str, Field(pattern=r"^[\w-]+/[\w-]+\.(onnx|xml)$")]  # in the folder
    network: str
    latents: tuple[Count, ...]  # shape of `sample`; two rows where both halves of guidance run
    inputs: tuple[str, ...]
    inherits: tuple[GraphValue, ...] = ()
    keeps: tuple[GraphValue, ...] = ()  # after `out_sample`
    # Largest of any output from PyTorch's, as a share of the output's largest:
    difference: Annotated[float, Field(ge=0)] | None = None


class ExportResult(Record, schema="asdm.export/1"):
    """`asdm.export/1`: a UNet in another form, and how near its output is to PyTorch's."""

    family: str
    to: str
    dtype: str
    params: Count
    size: Size | None = None  # pixels per side, or width and height; None where nothing was traced
    batch: int | None = None  # None where it is free
    why_fixed: str | None = None
    side_step: int | None = later(None)  # height and width are free multiples of these pixels; None: static
    why_static: str | None = later(None)
    one_timestep: bool = later(False)  # whether a graph takes one timestep for the whole batch
    tokens: Annotated[int, Field(ge=1)] | None = later(None)  # of a prompt that a graph takes, no more and no fewer
    difference: float | None = None  # largest, as a share of the largest output
    plain_diffusers: bool | None = None
    weights: str | None = later(None)  # "random", "shipped", or what was named
    layout: str | None = later(None)  # of a single file
    loaders: tuple[LoaderClaim, ...] = later(())  # what other programs do with a single file
    pipeline: str | None = later(None)  # folder of the VAE and text encoders in it
    source_sha256: str | None = later(None)  # of the exported UNet's weights
    base_model: str | None = later(None)
    license: str | None = later(None)
    left_out: tuple[str, ...] = later(())  # a LoRA's modules that the student has no place for
    graphs: tuple[PassGraphFile, ...] = later(())  # of a schedule
    passes: dict[str, tuple[str, ...]] = later({})  # of a schedule: pass → the graphs that it runs, in order
    marked: bool = later(False)  # a single file under keys that no other program takes for a Stable Diffusion's

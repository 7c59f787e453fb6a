"""The stages that train: a few steps of the mini, what a step costs, and runs that are killed and resumed."""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from asdm.distill.settings import DistillSettings
from asdm.records.distill import DistillResult
from asdm.records.measurement import Macs
from asdm.utils import console
from benchmarks.gpu.context import Context, Part
from benchmarks.gpu.records import PrecisionRun, TrainingCost

PLAN = "a_sdm_clme"
PICTURES = 64
STEP = {"batch": 16, "size": 512, "dtype": "bf16", "steps": 6, "rounds": 2}  # of the SD 1.5 training step
SMOKE_STEP = {"batch": 2, "size": None, "dtype": "fp32", "steps": 1, "rounds": 2}
OPTIONS = {"checkpoint_s": "--checkpoint-every"}  # those whose name is not the setting's


# ---------------------------------------------------------------------------------------------- what a step costs


def training(context: Context) -> list[Part]:
    """A stage-2 step of SD 1.5 against the plain loop with two whole UNets."""
    return [Part("end_to_end", partial(_training, context))]


def _training(context: Context) -> TrainingCost:
    """The largest batch that the plain loop has room for, halved until it fits."""
    from benchmarks.distillation import LoopSettings, measure

    values: dict[str, Any] = {"family": context.family, "plan": PLAN, "device": context.device}
    values |= SMOKE_STEP if context.smoke else STEP
    reason = ""
    while True:
        settings = LoopSettings(**values)
        try:
            with console.progress("Training", "turns") as tell:
                cost = measure(settings, tell, modes=("end_to_end",))
        except ValueError as error:
            if "out of memory" not in str(error).lower() or values["batch"] == 1:
                raise
            reason = f"batch {values['batch']}: {error}"
            values["batch"] //= 2
            continue
        estimated = _estimated_bytes(settings)
        return TrainingCost(
            cost=cost, macs_ratio=macs_ratio(settings), estimated_bytes=estimated, smaller_because=reason
        )


def _estimated_bytes(settings: Any) -> int:
    """What `asdm distill` expects the last stage to take, without encoding, which this benchmark leaves out."""
    from asdm.distill import dry_run, recipes
    from benchmarks.distillation import training_settings

    stages = dry_run.preview(
        settings.plan, settings.family, training_settings(settings), recipes.progressive_incubation
    )
    memory = stages[-1].memory
    return memory.weights + memory.gradients + memory.optimizer + memory.average + memory.activations


def macs_ratio(settings: Any) -> float:
    """MACs of a step that trains a whole student / of one that trains the shallow blocks of the combined UNet.

    A forward passes once through teacher and student. The backward computes the gradient of every activation, as
    expensive as the forward, and that of every trained weight, as expensive again; attention's products have two
    operands that are activations both.
    """
    from asdm.distill import recipes
    from asdm.distill.stages import meta_student, resolve_recipe
    from asdm.models import example_inputs
    from asdm.unet import blocks, flops

    recipe = resolve_recipe(settings.plan, settings.family, DistillSettings(), recipes.progressive_incubation)
    inputs = example_inputs.unet_inputs(recipe.family, settings.batch, settings.size, "meta")
    teacher = flops.count(recipe.meta_teacher, (), inputs).total
    student, _ = meta_student(recipe, recipe.stages[-1])
    parts = list(blocks.iter_parts(student))
    counted = flops.count(student, (), inputs, parts)
    trained = {part.fqn for part in parts if any(p.requires_grad for m in part.modules for p in m.parameters())}
    plain = teacher.macs + 3 * counted.total.macs
    ours = teacher.macs + sum(_step_macs(macs, fqn in trained) for fqn, macs in counted.by_part.items())
    return plain / ours


def _step_macs(macs: Macs, trained: bool) -> int:
    with_weights = macs.conv_macs + macs.linear_macs
    return (3 if trained else 2) * with_weights + 3 * macs.attention_macs


# ---------------------------------------------------------------------------------------------- runs of the mini


def few_steps(context: Context) -> DistillResult:
    """Both stages of the mini in twenty steps."""
    return _distil(context, context.work / "few", _values(context, 4 if context.smoke else 20, context.dtype))


def precisions(context: Context) -> list[Part]:
    """The mini's distillation in each precision, unbroken, and killed in its middle and resumed."""
    return [Part(dtype, partial(_precision, context, dtype)) for dtype in ("fp32", "bf16", "fp16")]


def _precision(context: Context, dtype: str) -> PrecisionRun:
    """Deterministic, as a resumed run has to be for the same bits, unless torch has no such algorithm for a step."""
    if dtype == "fp16":
        context.require_gpu("autocast to fp16 needs an accelerator")
    try:
        return _killed_and_resumed(context, dtype, deterministic=True)
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        console.say(f"{dtype}: {error}")
        return _killed_and_resumed(context, dtype, deterministic=False)


def _killed_and_resumed(context: Context, dtype: str, deterministic: bool) -> PrecisionRun:
    from asdm.distill import recipes, run_folder
    from asdm.distill.stages import resolve_recipe

    steps = 6 if context.smoke else 200
    whole, broken = (context.work / f"{dtype}-{deterministic}-{name}" for name in ("whole", "killed"))
    values = _values(context, steps, dtype) | {"deterministic": deterministic}
    unbroken = _distil(context, whole, values)
    killed_at = _kill(broken, values, at=steps // 2)
    recipe = resolve_recipe(PLAN, "mini", DistillSettings(**values), recipes.progressive_incubation)
    resumed_from = run_folder.step_reached(broken, recipe)
    resumed = _distil(context, broken, values)
    last, seconds = unbroken.stages[-1], sum(stage.seconds for stage in unbroken.stages)
    return PrecisionRun(
        dtype=dtype,
        deterministic=deterministic,
        steps=steps,
        batch=values["batch"],
        seconds=seconds,
        images_per_s=steps * values["batch"] / seconds,
        first_loss=last.first["loss"],
        last_loss=last.last["loss"],
        killed_at=killed_at,
        resumed_from=resumed_from,
        same_bits=unbroken.student_sha256 == resumed.student_sha256,
        largest_difference=_largest_difference(whole, broken),
    )


def _values(context: Context, steps: int, dtype: str) -> dict[str, Any]:
    """Settings of a run on drawn pictures; what is compared needs no good student, and no network to download."""
    return {
        "data": f"folder:{_pictures(context.work / 'pictures')}", "steps": steps, "device": context.device,
        "dtype": dtype, "vgg": "mini",
        "batch": 4 if context.smoke else 16, "checkpoint_s": 0.0 if context.smoke else 1.0,
    }  # fmt: skip


def _distil(context: Context, output: Path, values: Mapping[str, Any]) -> DistillResult:
    """A run in this process, or what is left of one."""
    from asdm.cli.progress import watching
    from asdm.distill import recipes, run

    with watching("Distilling") as watch:
        return run.distill(PLAN, "mini", output, DistillSettings(**values), recipes.progressive_incubation,
                           on_progress=watch, command=context.command)  # fmt: skip


def _kill(output: Path, values: Mapping[str, Any], at: int) -> int:
    """Start the same run as a command and kill it after a step; returns the last step that it logged."""
    from asdm.distill.logger import LOG, read_log

    words = [word for name, value in values.items() for word in _option(name, value)]
    command = [sys.executable, "-m", "asdm", "distill", PLAN, "--teacher", "mini", "-o", str(output), *words]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        while process.poll() is None and len(read_log(output / LOG)) < at:
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
    logged = read_log(output / LOG)
    if process.returncode != -signal.SIGKILL or not logged:
        raise ValueError(f"the run that was to be killed after step {at} ended by itself ({process.returncode}).")
    return int(logged[-1]["step"])


def _option(name: str, value: Any) -> list[str]:
    """A setting as words of the command line."""
    option = OPTIONS.get(name, f"--{name}")
    return [option] * value if isinstance(value, bool) else [option, str(value)]


def _largest_difference(first: Path, second: Path) -> float:
    from safetensors.torch import load_file

    def weights(folder: Path) -> dict[str, Any]:
        return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}

    one, other = weights(first), weights(second)
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


# ---------------------------------------------------------------------------------------------- drawn pictures


def _pictures(folder: Path) -> Path:
    """Captioned pictures of coloured shapes, the same ones every time: a data set that needs no package."""
    import json

    from PIL import Image, ImageDraw

    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    colours, shapes = ("red", "green", "blue", "orange"), ("circle", "square")
    lines = []
    for number in range(PICTURES):
        colour, shape, place = colours[number % 4], shapes[number // 4 % 2], 4 + number // 8 * 2
        image = Image.new("RGB", (64, 64), "white")
        draw = ImageDraw.Draw(image)
        (draw.ellipse if shape == "circle" else draw.rectangle)((place, place, place + 36, place + 36), fill=colour)
        image.save(folder / f"{number:03d}.png")
        lines.append(json.dumps({"file_name": f"{number:03d}.png", "text": f"a {colour} {shape}"}, allow_nan=False))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder

"""What a training step costs: the stage-2 step in both modes, against the plain loop that trains a whole second UNet.

    python -m benchmarks.distillation -o reports/sd15/distillation.json --size 256

The plain loop is what BK-SDM's script does: the teacher, on an accelerator in autocast's half precision, and a student
with its own memory in which everything learns from denoising + output + features. The other two train the combined UNet
of the same plan, in which the shallow blocks learn and the rest is the teacher's memory: `end_to_end` with
semantic-aware supervision, `blockwise` on the teacher's inputs and outputs.

Each turn is a fresh process, so that peak memory is one loop's alone, in the order A B B A …, so that drift of the
machine affects both. Weights and inputs are random: neither time nor memory depends on their values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch

from asdm.cli.options import Force, from_settings
from asdm.distill import losses, precision, recipes
from asdm.distill.losses import perceptual
from asdm.distill.settings import DistillSettings
from asdm.distill.setup import make_ema, make_optimizer
from asdm.distill.stages import make_trainable
from asdm.distill.task import DistillationTask, Objective
from asdm.measure import clocks
from asdm.measure.statistics import latency, paired_ratio
from asdm.models import example_inputs, execution, graft, loading, student as students
from asdm.models.families import load_family
from asdm.models.networks import Vgg
from asdm.records.measurement import Estimate, Latency, Run
from asdm.utils import console
from asdm.utils.io import check_writable
from asdm.utils.progress import Tell
from asdm.utils.record import Frozen
from asdm.utils.settings import Option
from benchmarks.script import JsonFile, finish, in_fresh_process, in_turn, resident_peak_bytes, run, run_fields

LOOPS = ("plain", "end_to_end", "blockwise")


@dataclass(frozen=True)
class LoopSettings:
    """What every loop trains, and how often it is timed."""

    family: Annotated[str, Option("Family or diffusers folder.")] = "sd15"
    plan: Annotated[str, Option("The student: a preset or a plan file.")] = "a_sdm_clme"
    size: Annotated[int | None, Option("Pixels per side; default: the family's.")] = None
    batch: Annotated[int, Option("Pictures per step.")] = 1
    dtype: Annotated[str, Option("Autocast: fp32, bf16 or fp16.")] = "fp32"
    device: Annotated[str, Option("cpu or cuda.")] = "cpu"
    threads: Annotated[int | None, Option("CPU threads; default: torch's.")] = None
    steps: Annotated[int, Option("Timed steps per turn.")] = 3
    rounds: Annotated[int, Option("Pairs of turns for each mode.")] = 4


class Turn(Frozen):
    """One process: seconds of each step, its peak memory, and the peak above what it began with."""

    step_s: tuple[float, ...]
    peak_bytes: int
    peak_above_start_bytes: int
    trainable: int


class Loop(Frozen):
    """One loop against the plain one; ratios pair neighbouring turns, saved memory is a share of the plain loop's."""

    name: Literal["end_to_end", "blockwise"]
    step_s: Latency
    plain_step_s: Latency
    steps_per_second_ratio: Estimate  # above 1: faster than the plain loop
    peak_bytes: int
    plain_peak_bytes: int
    memory_saved: float
    memory_saved_above_start: float
    turns: tuple[Turn, ...]
    plain_turns: tuple[Turn, ...]


class DistillationCost(Run, schema="asdm.distillation-cost/1"):
    """`asdm.distillation-cost/1`: what a training step takes, in pairs with the plain loop."""

    plan: str
    size: int
    batch: int
    loops: tuple[Loop, ...]


# ---------------------------------------------------------------------------------------------- one turn


def run_loop(name: str, values: Mapping[str, Any]) -> Turn:
    """Steps of one loop in this process: forward, backward, clipping, AdamW, running average."""
    settings = LoopSettings(**values)
    clock = clocks.clock_for(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    start = _peak(settings.device)
    model, optimizer, average = make_loop(name, settings)
    parameters = [p for p in model.parameters() if p.requires_grad]
    inputs = example_inputs.unet_inputs(load_family(settings.family), settings.batch, settings.size, settings.device)
    noisy, target = inputs["sample"], torch.randn_like(inputs["sample"])
    alpha = torch.full((settings.batch,), 0.5, device=settings.device)
    kind = settings.device.partition(":")[0]
    half = settings.dtype != "fp32"

    def step() -> None:
        with torch.autocast(kind, execution.dtype_of(settings.dtype), enabled=half):
            terms = model(noisy, inputs["timestep"], inputs["encoder_hidden_states"], target, alpha)
        sum(term.mean() for term in terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.step(parameters)

    training = training_settings(settings)
    frozen = precision.frozen_in(precision.frozen_dtype(training), model.teacher, model.student)
    with precision.torch_settings(training), frozen:
        step()  # the first one allocates the optimizer's moments
        times = tuple(clocks.timed(step, clock) for _ in range(settings.steps))
    peak = _peak(settings.device)
    return Turn(step_s=times, peak_bytes=peak, peak_above_start_bytes=peak - start,
                trainable=sum(p.numel() for p in parameters))  # fmt: skip


def make_loop(name: str, settings: LoopSettings) -> tuple[DistillationTask, Any, Any]:
    """A task with its optimizer and running average, from the trainer's own parts."""
    family = load_family(settings.family)
    teacher = loading.load_unet(family, execution.RANDOM, settings.device).requires_grad_(False)
    resolved = students.read_plan(settings.plan, teacher, family.name)
    stages = recipes.adjust(recipes.progressive_incubation, "blockwise" if name == "blockwise" else None)
    first, second = stages(resolved.topology, resolved.plan, 2)
    if name == "plain":
        student, applied = students.build(teacher, resolved)
        make_trainable(student)
    else:
        before, _ = students.build(teacher, first.plan)
        student, applied = graft.assemble(teacher, before, second.plan, first.plan.edits)
    stage = first if name == "plain" else second
    places = losses.find_places(stage.weights, student, applied.name_map)
    terms = tuple(term for term in stage.weights if places.get(term, True))
    vgg = Vgg.load().to(settings.device)
    adapter = torch.randn(3, family.unet.get("in_channels", 4) + 1, generator=torch.Generator().manual_seed(0))
    networks = {"perceptual": perceptual.LatentVgg(vgg, adapter.to(settings.device))}
    objective = Objective(
        terms=terms, places=places, prediction_type=family.prediction_type, mode=stage.mode, networks=networks
    )
    training = training_settings(settings)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = make_optimizer(parameters, training)
    return DistillationTask(student.train(), teacher, applied, objective), optimizer, make_ema(parameters, training)


def training_settings(settings: LoopSettings) -> DistillSettings:
    """The loop as a run of `asdm distill`, which takes its precision and its optimizer from these."""
    return DistillSettings(
        data="none", steps=2, device=settings.device, dtype=settings.dtype, size=settings.size, batch=settings.batch
    )


def _peak(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    return resident_peak_bytes()


# ---------------------------------------------------------------------------------------------- pairs


def measure(settings: LoopSettings, tell: Tell, modes: Sequence[str] = LOOPS[1:]) -> DistillationCost:
    """Modes against the plain loop, each in `rounds` pairs of processes."""
    loops = []
    for mode in modes:
        turns: dict[str, list[Turn]] = {mode: [], "plain": []}
        order = ["plain", mode, mode, "plain"] * settings.rounds
        for name in in_turn(order[: 2 * settings.rounds], f"{mode} against plain", tell):
            try:
                turns[name].append(in_fresh_process(run_loop, name, asdict(settings)))
            except ValueError as error:
                raise ValueError(f"the {name} loop failed: {error}") from None
        loops.append(_compare(mode, turns[mode], turns["plain"]))
    family = load_family(settings.family)
    threads = settings.threads or torch.get_num_threads()
    return DistillationCost(
        **run_fields("distillation", family.name, threads, settings.device, settings.dtype),
        plan=settings.plan,
        size=settings.size or family.size,
        batch=settings.batch,
        loops=tuple(loops),
    )


def _compare(name: Any, turns: list[Turn], plain: list[Turn]) -> Loop:
    def middle(of: list[Turn]) -> list[float]:
        return [sorted(turn.step_s)[len(turn.step_s) // 2] for turn in of]

    peak, above = (max(getattr(t, key) for t in turns) for key in ("peak_bytes", "peak_above_start_bytes"))
    plain_peak, plain_above = (max(getattr(t, key) for t in plain) for key in ("peak_bytes", "peak_above_start_bytes"))
    return Loop(
        name=name,
        step_s=latency([s for turn in turns for s in turn.step_s]),
        plain_step_s=latency([s for turn in plain for s in turn.step_s]),
        steps_per_second_ratio=paired_ratio(middle(plain), middle(turns)),
        peak_bytes=peak,
        plain_peak_bytes=plain_peak,
        memory_saved=1 - peak / plain_peak,
        memory_saved_above_start=1 - above / max(plain_above, 1),
        turns=tuple(turns),
        plain_turns=tuple(plain),
    )


def row(loop: Loop) -> dict[str, str]:
    """A line of the printed table."""
    ratio = loop.steps_per_second_ratio
    return {
        "loop": loop.name,
        "learns M": f"{loop.turns[0].trainable / 1e6:.1f} of {loop.plain_turns[0].trainable / 1e6:.1f}",
        "step s": f"{loop.step_s.median:.3g}",
        "plain s": f"{loop.plain_step_s.median:.3g}",
        "steps/s ×": f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
        "peak GiB": f"{loop.peak_bytes / 2**30:.2f}",
        "plain GiB": f"{loop.plain_peak_bytes / 2**30:.2f}",
        "memory saved": f"{loop.memory_saved:.0%}",
    }


@from_settings
def main(output: JsonFile, *, settings: LoopSettings, force: Force = False) -> None:
    """Time a stage-2 step against the plain loop with two whole UNets, in pairs."""
    check_writable(output, force)
    with console.progress("Comparing", "turns") as tell:
        result = measure(settings, tell)
    finish(result, output, force, map(row, result.loops))


if __name__ == "__main__":
    run(main)

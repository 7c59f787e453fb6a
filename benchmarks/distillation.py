"""What a training step costs: the stage-2 step in both modes, against the plain loop that trains a second copy whole.

    python -m benchmarks.distillation -o reports/sd15/distillation.json --size 256

The plain loop is what BK-SDM's script does: the teacher, and a student with memory of its own in which everything
learns from denoising + output + features. The other two train the same plan's combined UNet: shallow blocks learn, the
rest is the teacher's own memory; `end_to_end` under semantic-aware supervision, `blockwise` on the teacher's own inputs
and outputs.

Each turn is a process of its own, so that peak memory is that loop's alone, in the order A B B A …, so that a drift of
the machine falls on both. Weights and inputs are random: neither time nor memory depends on their values.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from asdm.cli.options import this_command
from asdm.distill import losses, recipes
from asdm.distill.losses import perceptual
from asdm.distill.settings import DistillSettings
from asdm.distill.setup import make_ema, make_optimizer
from asdm.distill.stages import make_trainable
from asdm.distill.task import DistillationTask, Objective
from asdm.measure import clocks, machine
from asdm.measure.statistics import latency, paired_ratio
from asdm.models import example_inputs, execution, graft, loading
from asdm.models import student as students
from asdm.models.families import load_family
from asdm.models.networks import Vgg
from asdm.records.measurement import Estimate, Latency
from asdm.utils import console
from asdm.utils.io import Frozen, Record, check_writable, utc_now

LOOPS = ("plain", "end_to_end", "blockwise")


class Turn(Frozen):
    """One process: seconds of each step, and the most memory it held, and held above what it began with."""

    step_s: tuple[float, ...]
    peak_bytes: int
    peak_above_start_bytes: int
    trainable: int


class Loop(Frozen):
    """One loop against the plain one; ratios are of neighbouring turns, saved memory is a share of the plain loop's."""

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


class DistillationCost(Record):
    """`asdm.distillation-cost/1`: what a training step takes, in pairs with the plain loop."""

    SCHEMA: ClassVar[str] = "asdm.distillation-cost/1"
    schema_: Literal["asdm.distillation-cost/1"] = Field("asdm.distillation-cost/1", alias="schema")
    created_utc: str
    command: str
    family: str
    plan: str
    size: int
    batch: int
    dtype: str
    device: str
    threads: int
    loops: tuple[Loop, ...]
    environment: dict[str, str]


# ---------------------------------------------------------------------------------------------- one turn


def run_loop(name: str, chosen: Any) -> Turn:
    """Steps of one loop in this process: forward, backward, clipping, AdamW, running average."""
    clock = clocks.clock_for(chosen.device)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    start = _peak(chosen.device)
    model, optimizer, average = make_loop(name, chosen)
    parameters = [p for p in model.parameters() if p.requires_grad]
    inputs = example_inputs.unet_inputs(load_family(chosen.family), chosen.batch, chosen.size, chosen.device)
    noisy, target = inputs["sample"], torch.randn_like(inputs["sample"])
    alpha = torch.full((chosen.batch,), 0.5, device=chosen.device)
    kind = chosen.device.partition(":")[0]
    half = chosen.dtype != "fp32"

    def step() -> None:
        with torch.autocast(kind, execution.dtype_of(chosen.dtype), enabled=half):
            terms = model(noisy, inputs["timestep"], inputs["encoder_hidden_states"], target, alpha)
        sum(term.mean() for term in terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.step(parameters)

    step()  # the first one makes the moments
    times = tuple(clocks.timed(step, clock) for _ in range(chosen.steps))
    peak = _peak(chosen.device)
    return Turn(step_s=times, peak_bytes=peak, peak_above_start_bytes=peak - start,
                trainable=sum(p.numel() for p in parameters))  # fmt: skip


def make_loop(name: str, chosen: Any) -> tuple[DistillationTask, Any, Any]:
    """A lesson with its optimizer and average, from the trainer's own parts."""
    family = load_family(chosen.family)
    teacher = loading.load_unet(family, execution.RANDOM, chosen.device).requires_grad_(False)
    resolved = students.read_plan(chosen.plan, teacher, family.name)
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
    vgg = Vgg.load().to(chosen.device)
    adapter = torch.randn(3, family.unet.get("in_channels", 4) + 1, generator=torch.Generator().manual_seed(0))
    objective = Objective(
        terms=terms,
        places=places,
        prediction_type=family.prediction_type,
        mode=stage.mode,
        networks={"perceptual": perceptual.LatentVgg(vgg, adapter.to(chosen.device))},
    )
    settings = DistillSettings(data="none", steps=2, device=chosen.device)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = make_optimizer(parameters, settings)
    return (
        DistillationTask(student.train(), teacher, applied, objective),
        optimizer,
        make_ema(parameters, settings),
    )


def _peak(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ---------------------------------------------------------------------------------------------- pairs


def measured(chosen: Any, tell: Any, command: str) -> DistillationCost:
    """Both modes against the plain loop, each in `rounds` pairs of processes."""
    loops = []
    for name in LOOPS[1:]:
        turns: dict[str, list[Turn]] = {name: [], "plain": []}
        for turn in range(chosen.rounds):
            for who in ("plain", name) if turn % 2 == 0 else (name, "plain"):
                tell(f"{name} against plain, pair {turn + 1} of {chosen.rounds}: {who}", 0, None)
                turns[who].append(_in_a_process(who, chosen))
        loops.append(_compared(name, turns[name], turns["plain"]))
    family = load_family(chosen.family)
    threads = chosen.threads or torch.get_num_threads()
    return DistillationCost(
        created_utc=utc_now(),
        command=command,
        family=family.name,
        plan=chosen.plan,
        size=chosen.size or family.size,
        batch=chosen.batch,
        dtype=chosen.dtype,
        device=chosen.device,
        threads=threads,
        loops=tuple(loops),
        environment=machine.environment(chosen.device, threads),
    )


def _in_a_process(name: str, chosen: Any) -> Turn:
    line = [sys.executable, __file__, "--turn", name]
    for key in ("family", "plan", "size", "batch", "dtype", "device", "threads", "steps"):
        if getattr(chosen, key) is not None:
            line += [f"--{key}", str(getattr(chosen, key))]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was killed, perhaps for want of memory"])[-1]
        raise ValueError(f"the {name} loop failed: {last}")
    return Turn.model_validate_json(done.stdout.strip().splitlines()[-1])


def _compared(name: Any, turns: list[Turn], plain: list[Turn]) -> Loop:
    def best(of: list[Turn]) -> list[float]:
        return [sorted(turn.step_s)[len(turn.step_s) // 2] for turn in of]

    peak, above = (max(getattr(t, key) for t in turns) for key in ("peak_bytes", "peak_above_start_bytes"))
    plain_peak, plain_above = (max(getattr(t, key) for t in plain) for key in ("peak_bytes", "peak_above_start_bytes"))
    return Loop(
        name=name,
        step_s=latency([s for turn in turns for s in turn.step_s]),
        plain_step_s=latency([s for turn in plain for s in turn.step_s]),
        steps_per_second_ratio=paired_ratio(best(plain), best(turns)),
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


def main(arguments: list[str] | None = None) -> None:
    """Measure, save, print."""
    parser = argparse.ArgumentParser(description="Times a stage-2 step against the plain two-copies loop, in pairs.")
    parser.add_argument("--family", default="sd15", help="a family or a diffusers folder")
    parser.add_argument("--plan", default="a_sdm_clme", help="the student: a preset or a plan file")
    parser.add_argument("--size", type=int, help="pixels per side; default: the family's")
    parser.add_argument("--batch", type=int, default=1, help="pictures of a step")
    parser.add_argument("--dtype", default="fp32", help="autocast: fp32, bf16 or fp16")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads; default: what torch takes")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a turn")
    parser.add_argument("--rounds", type=int, default=4, help="pairs of turns for each mode")
    parser.add_argument("-o", "--output", type=Path, help="the JSON file to write")
    parser.add_argument("--turn", choices=LOOPS, help="run one turn in this process and print it")
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    chosen = parser.parse_args(arguments)
    if chosen.turn:
        print(run_loop(chosen.turn, chosen).model_dump_json())
        return
    if chosen.output is None:
        parser.error("name the JSON file to write (-o)")
    check_writable(chosen.output, chosen.force)
    with console.progress("Comparing") as tell:
        found = measured(chosen, tell, this_command("python -m benchmarks.distillation"))
    found.save(chosen.output, chosen.force)
    console.emit([row(loop) for loop in found.loops], console.Format.table)
    console.say(f"Wrote {chosen.output}")


if __name__ == "__main__":
    main()

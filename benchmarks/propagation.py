"""Whether an edit's damage can be had without running its student: its unit's error, propagated to first order.

    python -m benchmarks.propagation mini reports/mini/damage.json -o reports/mini/propagation.json

On the calibration of measured damages, one backward of a random projection of the teacher's output gives the gradient
at every unit's output. Its product with the error that an edited unit makes on the teacher's own inputs is, to first
order, the projection of the output's error; the mean square over projections predicts each edit's damage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from asdm.cli.options import Force
from asdm.measure import machine, statistics
from asdm.models import loading, sources
from asdm.plan.edits import AnyEdit, RemoveUnit, ReplaceUnit
from asdm.records.measurement import Run
from asdm.unet import hooks, surgery
from asdm.utils import console, io
from asdm.utils.record import Frozen
from asdm.utils.runs import find_input
from asdm_prof.records import Damage, Interval
from asdm_prof.sensitivity import additivity, calibration, variants
from asdm_prof.sensitivity.settings import SensitivitySettings
from benchmarks.script import Threads, finish, in_turn, run, run_fields


class PredictedDamage(Frozen):
    edit: AnyEdit
    predicted: float
    measured: float


class PropagationFit(Frozen):
    edits: str
    count: int
    spearman: Interval
    r2: Interval  # of the predictions as they are
    median_ratio: Interval  # predicted over measured


class Propagation(Run, schema="asdm.propagation/1"):
    """`asdm.propagation/1`: damages of single units by propagating their errors, against measured ones."""

    weights_sha256: str
    damage_sha256: str
    probes: int  # random projections of each noised latent's output
    fits: tuple[PropagationFit, ...]  # of all edits, then by what becomes of the unit
    edits: tuple[PredictedDamage, ...]


def main(
    family: Annotated[str, typer.Argument(help="Family or diffusers folder with weights.")],
    damage: Annotated[Path, typer.Argument(help="Damages to compare with, from `asdm-prof sensitivity`.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="JSON file to write.")],
    probes: Annotated[int, typer.Option(min=1, help="Random projections of the output.")] = 4,
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Predict the damage of single units by propagating their errors, and compare it with what was measured."""
    io.check_writable(output, force)
    measured = Damage.load(find_input(damage))
    same = measured.model_dump(include={"data", "split", "prompts", "seed", "dtype"})
    settings = SensitivitySettings(**same, size=measured.size, timesteps=len(measured.timesteps), threads=threads)
    single = [one for one in measured.edits if isinstance(one.edit, RemoveUnit | ReplaceUnit) and not one.also]
    with (console.progress("Propagating", "prompts") as tell, machine.quiet_torch(threads) as used,
          torch.inference_mode(False), torch.no_grad()):  # fmt: skip
        model, weights = sources.resolve(family, settings, needs="benchmarks.propagation")
        teacher: Any = loading.load_teacher(model, settings := replace(settings, weights=weights)).requires_grad_(False)
        if (loading.weights_sha256(teacher), None) != (measured.weights_sha256, measured.units_sha256):
            raise ValueError(f"{damage} was measured on other weights or units than {family}'s own.")
        data = calibration.make_calibration(model, teacher, settings)
        students = variants.make_variants(teacher, [surgery.resolved_on(teacher, one.edits) for one in single])
        unets = {student.index: student.unet for student in students}
        edited = [(one.edit.unit, unets[i].get_submodule(one.edit.unit)) for i, one in enumerate(single)]
        batches = (data.inputs(slice(n, n + 1)) for n in in_turn(range(settings.prompts), "prompts", tell))
        predicted = np.mean([propagated(teacher, edited, one, probes, n) for n, one in enumerate(batches)], 0)
    pairs = zip(single, predicted, strict=True)
    edits = [PredictedDamage(edit=one.edit, predicted=value, measured=one.damage.value) for one, value in pairs]
    result = Propagation(**run_fields("propagation", model.name, used), weights_sha256=measured.weights_sha256,
                         damage_sha256=measured.sha256(), probes=probes, fits=tuple(fits(edits)),
                         edits=tuple(edits))  # fmt: skip
    finish(result, output, force, map(row, result.fits))


@torch.enable_grad()
def propagated(teacher: Any, edited: Any, inputs: dict[str, Any], probes: int, seed: int) -> np.ndarray:
    """⟨gradient, error⟩² per element of the output, mean over latents and probes, of every (unit, what it becomes)."""
    with hooks.captured_calls(teacher, {unit for unit, _ in edited}) as calls:
        output = teacher(**inputs | {"sample": inputs["sample"].clone().requires_grad_()})[0]
    maps = {unit: hooks.first_tensor(call.output) for unit, call in calls.items()}
    with torch.no_grad():
        errors = [(u, hooks.first_tensor(new(*calls[u].args, **calls[u].kwargs)) - maps[u]) for u, new in edited]
    squares, generator = torch.zeros(len(edited), dtype=torch.double), torch.Generator().manual_seed(seed)
    for _ in range(probes):
        probe = torch.randn(output.shape, generator=generator)
        found = torch.autograd.grad(output, [*maps.values()], probe, retain_graph=True)
        gradients = dict(zip(maps, found, strict=True))
        products = torch.stack([(gradients[unit] * error).flatten(1).sum(1) for unit, error in errors])
        squares += products.double().square().mean(1)
    return (squares / probes / output[0].numel()).numpy()


def fits(edits: Sequence[PredictedDamage]) -> Iterator[PropagationFit]:
    """Predictions against measurements: all edits, then what becomes of eight or more units."""
    names = [one.edit.what if isinstance(one.edit, ReplaceUnit) else "removal" for one in edits]
    kinds = {"all": edits} | {k: [one for one, own in zip(edits, names, strict=True) if own == k] for k in names}
    for what, some in ((kind, some) for kind, some in kinds.items() if kind == "all" or len(some) >= 8):
        both = [one.predicted for one in some], [one.measured for one in some]
        fit, ratios = additivity.fit(*both), np.divide(*both)
        ratio = additivity.interval_of(statistics.bootstrap(ratios), float(np.median(ratios)))
        yield PropagationFit(edits=what, count=len(some), spearman=fit.spearman, r2=fit.r2, median_ratio=ratio)


def row(one: PropagationFit) -> dict[str, str]:
    values = {"Spearman": one.spearman, "R²": one.r2, "predicted / measured": one.median_ratio}
    shown = {name: f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]" for name, value in values.items()}
    return {"edits": one.edits, "number": str(one.count), **shown}


if __name__ == "__main__":
    run(main)

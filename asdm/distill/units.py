"""Block-local distillation: every replaced unit learns alone from what its original took and gave.

All replacements of all units of a block are made at once, from the same forwards of the teacher (LAPTOP-Diff's and
Puzzle's way): what is kept is chosen on calibration data, what stays is refit by least squares, and then, with
`steps`, trained with AdamW on the unit's own output. Nothing passes from one unit to another, so the units are good in
any plan, and a student that is put together from them has never been trained as a whole.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asdm.data import loader
from asdm.data.choice import data_for
from asdm.data.identity import FINGERPRINT, SAMPLE, identity
from asdm.distill.context import TrainContext, load_context, make_accelerator
from asdm.distill.precision import torch_settings
from asdm.distill.refit import channel_power, error, own_memory, refit
from asdm.distill.run_folder import run_lock
from asdm.distill.sampling import prepared, task_inputs
from asdm.distill.settings import DistillSettings, UnitSettings
from asdm.distill.stages import ResolvedRecipe
from asdm.measure import machine
from asdm.models import loading
from asdm.models.settings import BESIDE_THE_UNET
from asdm.models.sources import family_of, weights_of
from asdm.models.units import INDEX, edit_key, save_unit, unit_file, why_unusable
from asdm.plan.edits import PruningPlan, ReplaceUnit, format_options
from asdm.records.units import UnitRecord, Units
from asdm.unet import blocks, surgery
from asdm.unet.hooks import Call, captured_calls, first_tensor
from asdm.unet.inputs import check_caption_only
from asdm.unet.replacements import names_of
from asdm.utils import console, registry
from asdm.utils.io import make_folder
from asdm.utils.progress import Tell
from asdm.utils.record import sha256_of, utc_now
from asdm.utils.settings import check_bounds

MADE_WITH = ("data", "split", "calibration", "steps", "batch", "learning_rate", "seed", *BESIDE_THE_UNET)
CALIBRATION, TRAINING = 0, 1  # streams of random numbers
JUDGED = 4  # every fourth batch of calibration judges what the others fit


@dataclass
class _Unit:
    """One edit on its way: the original, what takes its place, and its errors so far."""

    edit: ReplaceUnit
    original: nn.Module
    new: nn.Module
    sha256: str
    from_weights: float
    fitted: float
    trained: float | None = None


def distill_units(
    teacher: str | None,
    output: Path,
    settings: UnitSettings,
    plans: Sequence[PruningPlan] = (),
    tell: Tell = lambda *_: None,
    command: str = "",
) -> Units:
    """Make the replaced units of `plans`, or all that `settings.options` name, in the folder `output`.

    Units that are there already, of the same weights and settings, are kept. Raises ValueError for settings or plans
    that do not fit the teacher, and for a library of another teacher in the folder.
    """
    check_bounds(settings)
    began = time.monotonic()
    family = family_of(teacher, settings)
    settings = replace(settings, weights=weights_of(family, settings, needs="asdm distill-units"))
    before = _saved(output)
    named = settings.data or (before.data if before else None)
    settings = replace(settings, data=data_for(named, family, "asdm distill-units"))
    check_caption_only(family.unet, family.name, "asdm distill-units")
    shapes = loading.meta_unet(family).requires_grad_(False)
    wanted = _edits_to_distil(shapes, settings, plans)
    own = {field.name for field in fields(DistillSettings)}
    training = DistillSettings(**{k: v for k, v in asdict(settings).items() if k in own and k != "steps"})
    recipe = ResolvedRecipe(family, shapes, PruningPlan(family=family.name, edits=()), ())
    make_folder(output)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with run_lock(output), torch_settings(training):
        tell("loading the teacher", 0, None)
        context = load_context(recipe, training, output, make_accelerator(training), lambda _: None)
        saved = _saved(output)
        record = _record(context, settings, command, saved)
        if saved:
            record = _continued(saved, record, output)
            settings = replace(settings, data=record.data)  # as it was spelled first
        records, earlier_s = {unit.sha256: unit for unit in record.units}, record.seconds
        for block, edits in _by_block(context.teacher, wanted).items():
            left = {sha: e for e in edits if (sha := _sha256(context.teacher, e, settings)) not in records}
            if not left:
                continue
            units = _fit(context, block, left, settings, tell)
            if settings.steps:
                _train(context, block, units, settings, tell)
            for unit in units:
                file_sha256 = save_unit(unit.new, unit.original, unit_file(output, unit.sha256))
                records[unit.sha256] = UnitRecord(
                    edit=unit.edit, sha256=unit.sha256, from_weights=unit.from_weights, fitted=unit.fitted,
                    trained=unit.trained, file_sha256=file_sha256,
                )  # fmt: skip
            seconds = earlier_s + time.monotonic() - began
            record = record.model_copy(update={"units": tuple(records.values()), "seconds": seconds})
            record.save(output / INDEX, force=True)
    record.save(output / INDEX, force=True)
    return record


def _edits_to_distil(shapes: nn.Module, settings: UnitSettings, plans: Sequence[PruningPlan]) -> list[ReplaceUnit]:
    if not plans:
        return surgery.applicable(shapes, names_of(settings.options))
    edits = {edit_key(e): e for plan in plans for e in surgery.resolved_on(shapes, plan).replacements}
    if not edits:
        raise ValueError(f"{' and '.join(plan.name for plan in plans)} replace no unit; there is nothing to distil.")
    return list(edits.values())


def _saved(output: Path) -> Units | None:
    return Units.load(output / INDEX) if (output / INDEX).exists() else None


def _record(context: TrainContext, settings: UnitSettings, command: str, saved: Units | None) -> Units:
    before = {name: value for name in (FINGERPRINT, SAMPLE) if saved and (value := getattr(saved, name)) is not None}
    return Units(
        created_utc=utc_now(),
        command=command,
        family=context.recipe.family.name,
        teacher_sha256=context.teacher_sha256,
        environment=machine.environment(settings.device, torch.get_num_threads()),
        **identity(context.data, before),
        **{name: getattr(settings, name) for name in MADE_WITH},
    )


def _continued(saved: Units, new: Units, output: Path) -> Units:
    """The library in the folder, without units whose files are damaged or gone, which a message names.

    Raises ValueError if it is of another teacher or data, or was made in another way.
    """
    known = saved.data_fingerprint is not None  # earlier versions knew data by their spelling alone
    if known and (saved.data_fingerprint, saved.data_sample) != (new.data_fingerprint, new.data_sample):
        raise ValueError(f"{output} was made on other data than {new.data} has now; name another folder.")
    for name in ("teacher_sha256", *MADE_WITH):
        if name == "data" and known:
            continue
        if (there := getattr(saved, name)) != (here := getattr(new, name)):
            raise ValueError(
                f"{output} is a library with {name} {str(there)[:12]}, got {str(here)[:12]}; name another folder."
            )
    problems = {unit.sha256: why_unusable(output, unit) for unit in saved.units}
    for problem in filter(None, problems.values()):
        console.say(f"Warning: {problem}; it leaves the library until it is made again.")
    return saved.model_copy(update={"units": tuple(unit for unit in saved.units if not problems[unit.sha256])})


def _by_block(teacher: Any, edits: Sequence[ReplaceUnit]) -> dict[str, list[ReplaceUnit]]:
    block_of = {unit.fqn: unit.block for unit in blocks.iter_units(teacher)}
    grouped: dict[str, list[ReplaceUnit]] = defaultdict(list)
    for edit in edits:
        grouped[block_of[edit.unit]].append(edit)
    return grouped


def _sha256(teacher: nn.Module, edit: ReplaceUnit, settings: UnitSettings) -> str:
    made_with = {name: value for name in MADE_WITH if (value := getattr(settings, name)) is not None}
    weights = [loading.weights_sha256(teacher.get_submodule(edit.unit))]
    if edit.with_ == "cond_conv":  # which takes kernels of its siblings
        weights += [loading.weights_sha256(sibling) for sibling in blocks.siblings(teacher, edit.unit)]
    return sha256_of([weights, edit_key(edit), made_with])


# ---------------------------------------------------------------------------------------------- data


def _batches(context: TrainContext, stream: int) -> Generator[dict[str, Any]]:
    """Arguments of the teacher's call, batch by batch: what a step of distillation would call it with."""
    settings = context.settings
    source = loader.batches(
        context.data, settings.batch, settings.seed + stream, loader.Share(), 0, {},
        settings.workers or loader.default_workers(),
    )  # fmt: skip
    no_caption = context.encoder.nothing()
    with loader.ahead(prepared(context, stream, 0, source)) as next_batch:
        while True:
            _, collated, random_inputs = next_batch()
            encoded, random_inputs = context.encoder.encode(collated), random_inputs.to(context.accelerator.device)
            everything = range(len(encoded))
            noisy, timesteps, states, _, _, *more = task_inputs(everything, encoded, random_inputs, no_caption, context)
            inputs: dict[str, Any] = {"sample": noisy, "timestep": timesteps, "encoder_hidden_states": states}
            if more:  # SDXL's
                inputs["added_cond_kwargs"] = dict(zip(("text_embeds", "time_ids"), more, strict=True))
            yield inputs | {"return_dict": False}


@torch.no_grad()
def _calls(context: TrainContext, fqns: Sequence[str], inputs: dict[str, Any]) -> dict[str, Call]:
    """What each unit takes and gives in one forward of the teacher."""
    with captured_calls(context.teacher, fqns) as calls:
        context.teacher(**inputs)
    return calls


# ---------------------------------------------------------------------------------------------- fitting and training


def _fit(
    context: TrainContext, block: str, edits: Mapping[str, ReplaceUnit], settings: UnitSettings, tell: Tell
) -> list[_Unit]:
    """Every edit of a block from its weights, and fitted on calibration data where that is nearer."""
    fqns = list(dict.fromkeys(edit.unit for edit in edits.values()))
    batches = _batches(context, CALIBRATION)
    n = max(2, settings.calibration // settings.batch)
    tell(f"{block}: calibrating", 0, None)
    batch_calls = [_calls(context, fqns, next(batches)) for _ in range(n)]
    batches.close()
    units: list[_Unit] = []
    for fqn in fqns:
        original, calls = context.teacher.get_submodule(fqn), [one[fqn] for one in batch_calls]
        judge = calls[::JUDGED]
        fit = [call for i, call in enumerate(calls) if i % JUDGED] or judge
        power = channel_power(original, fit)
        for sha256, edit in [(sha, edit) for sha, edit in edits.items() if edit.unit == fqn]:
            tell(f"{block}: fitting {edit.what}", len(units), None)
            plain = own_memory(surgery.replacement_for(context.teacher, edit))
            new = own_memory(surgery.replacement_for(context.teacher, edit, power))
            steps = getattr(registry.load("asdm.unet.replacements", edit.with_), "refits", lambda _: ())
            refit(new, original, steps(new), fit, judge)
            errors = error(plain, judge), error(new, judge)
            better = new if errors[1] < errors[0] else plain
            units.append(_Unit(edit, original, better, sha256, errors[0], min(errors)))
    return units


def _train(context: TrainContext, block: str, units: Sequence[_Unit], settings: UnitSettings, tell: Tell) -> None:
    """AdamW on each unit's own output; one forward of the teacher serves all. What got no nearer is undone."""
    fqns = list(dict.fromkeys(unit.edit.unit for unit in units))
    batches = _batches(context, TRAINING)
    judge = [_calls(context, fqns, inputs) for inputs in (next(batches) for _ in range(2))]
    students = [(unit, own_memory(unit.new).requires_grad_(True)) for unit in units]
    learning = [(unit, new) for unit, new in students if next(new.parameters(), None) is not None]
    optimizers = [torch.optim.AdamW(new.parameters(), lr=settings.learning_rate, weight_decay=0) for _, new in learning]
    for step in range(settings.steps):
        tell(f"{block}: distilling {len(learning)} units", step, None)
        calls = _calls(context, fqns, next(batches))
        rate = settings.learning_rate * (1 + math.cos(math.pi * step / settings.steps)) / 2
        for (unit, new), optimizer in zip(learning, optimizers, strict=True):
            call = calls[unit.edit.unit]
            expected = first_tensor(call.output)
            loss = (first_tensor(new(*call.args, **call.kwargs)) - expected).square().mean() / expected.var()
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
    batches.close()
    for unit, new in students:
        judged = [one[unit.edit.unit] for one in judge]
        before, after = error(unit.new, judged), error(new, judged)
        unit.trained = unit.fitted * min(1.0, after / max(before, 1e-30))
        if after < before:
            unit.new = new.requires_grad_(False)


# ---------------------------------------------------------------------------------------------- telling


def describe(record: Units, output: Path) -> str:
    """A line for each replacement: how many units, and their mean errors at each step."""
    by_name: dict[str, list[UnitRecord]] = defaultdict(list)
    for unit in record.units:
        edit = unit.edit
        by_name[f"{edit.with_} {format_options(edit.options)}".strip()].append(unit)
    lines = ["Mean squared error of what a unit gives, relative to its variance:"]
    for name, units in sorted(by_name.items()):
        steps = [("from weights", "from_weights"), ("fitted", "fitted"), ("trained", "trained")]
        means = [(word, [e for u in units if (e := getattr(u, field)) is not None]) for word, field in steps]
        errors_by_step = ", ".join(f"{word} {sum(errors) / len(errors):.3g}" for word, errors in means if errors)
        lines.append(f"  {name}: {len(units)} units, {errors_by_step}")
    return "\n".join([*lines, f"Wrote {len(record.units)} units to {output}."])

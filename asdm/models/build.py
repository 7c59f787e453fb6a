"""Build a student on disk: teacher → surgery → a diffusers folder, with a record of what was removed and replaced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from asdm.measure import machine
from asdm.models import example_inputs, execution, graft, loading, student as students
from asdm.models.execution import RANDOM
from asdm.models.families import Family
from asdm.models.settings import Setup
from asdm.models.sources import family_in_plan, resolve
from asdm.models.units import UnitLibrary
from asdm.plan.edits import PruningPlan
from asdm.records.build import BuildResult, FreezeAudit
from asdm.records.measurement import mac_unit
from asdm.unet import blocks, diff, flops
from asdm.unet.surgery import Applied
from asdm.utils.console import plain
from asdm.utils.io import check_replaceable
from asdm.utils.progress import Tell
from asdm.utils.sizes import Size


def build_student(
    source: str,
    teacher: str | None,
    output: Path,
    stage1: str | None = None,
    setup: Setup = Setup(),
    force: bool = False,
    tell: Tell = lambda *_: None,
    units: Path | None = None,
) -> BuildResult:
    """Build the student of a plan file or preset and save it atomically to the folder `output`.

    Replaced units have their weights of the library `units`, where it has some.

    With `stage1`, the folder of a stage-1 student, the combined UNet of §2.2 is assembled from teacher and student.
    Raises ValueError for a plan that does not fit its teacher, too little memory, or an existing folder.
    """
    execution.check_setup(setup)
    check_replaceable(output, force, "build.json", (source, teacher, stage1, setup.weights))
    device, dtype = setup.device, setup.dtype
    family, weights = resolve(teacher or family_in_plan(source), setup)
    shapes = loading.meta_unet(family, dtype)
    resolved = students.read_plan(source, shapes, family.name)
    stage1 = stage1 or graft.stage1_of(resolved.plan)
    first = graft.stage1_family(stage1) if stage1 else None
    if first:
        resolved = graft.with_grafts(resolved)
        small, applied = graft.assemble(shapes, loading.meta_unet(first, dtype), resolved, graft.edits_in(first))
    else:
        small, applied = students.build(shapes, resolved)
    before, after = costs = (count(family, shapes, dtype), count(family, small, dtype))
    need = before.parameter_bytes + (after.parameter_bytes if first else 0)
    machine.require_memory(
        int(need * 1.1), device, f"building a student of {family.name}", execution.smaller_dtype(dtype)
    )

    tell("loading the teacher", 0, None)
    unet = loading.load_teacher(family, replace(setup, weights=weights))
    tell("applying the plan", 0, None)
    make = UnitLibrary(units, unet) if units else None
    if first:
        small_unet = loading.load_unet(first, str(first.folder), device, dtype)
        student, _ = graft.assemble(unet, small_unet, resolved, make=make)
    else:
        student, _ = students.build(unet, resolved, make)
    plan = resolved.plan
    audit = graft.audit(student, unet) if first else None
    result = record(plan, family, weights, shapes, small, applied, costs, stage1, audit).model_copy(
        update={"warning": plan.not_measured_at(device=device, dtype=dtype)}
    )
    tell("saving the student", 0, None)
    students.save(student, plan, result, output, force, {"diff.txt": diff.render(result.diff) + "\n"})
    return result


def count(
    family: Family, unet: nn.Module, dtype: str = "fp32", batch: int = 1, size: Size | None = None
) -> flops.Count:
    """MACs and parameters of a family's UNet, or of its student, on the meta device."""
    inputs = example_inputs.unet_inputs(family, batch, size, "meta", dtype)
    return flops.count(unet, (), inputs, list(blocks.iter_parts(unet)))


def record(
    plan: PruningPlan,
    family: Family,
    weights: str,
    shapes: nn.Module,
    small: nn.Module,
    applied: Applied,
    costs: tuple[flops.Count, flops.Count],
    stage1: str | None = None,
    audit: FreezeAudit | None = None,
) -> BuildResult:
    """The record beside a student's weights; `shapes` and `small` are teacher and student on the meta device, `costs`
    their counts."""
    before, after = costs
    return BuildResult(
        name=plan.name,
        family=family.name,
        weights=loading.weights_name(family, weights),
        params=after.params,
        macs=after.total.macs,
        teacher_params=before.params,
        teacher_macs=before.total.macs,
        removed=applied.removed,
        replaced=applied.replaced,
        name_map=applied.name_map,
        plain_diffusers=type(small).__name__ == "UNet2DConditionModel",
        plan_sha256=plan.sha256(),
        prediction_type=family.prediction_type,
        zero_terminal_snr=family.zero_terminal_snr,
        vae_factor=family.vae_factor,
        tokens=family.tokens,
        stage1=stage1,
        audit=audit,
        diff=diff.diff(shapes, before, small, after, applied),
    )


def describe(result: BuildResult, output: Path) -> str:
    """A text of what was removed and replaced, unit by unit, and of what is left."""
    removed, replaced = (f"{len(parts)}" for parts in (result.removed, result.replaced))
    lines = [f"{plain(result.name)}: {removed} parts removed, {replaced} replaced in {plain(result.family)}."]
    lines += [f"  - {fqn}" for fqn in result.removed]
    lines += [f"  ~ {fqn} → {name}" for fqn, name in result.replaced.items()]
    lines += ["", diff.render(result.diff, whole=False), ""]
    macs, unit = mac_unit(result.teacher_macs)
    lines.append(
        f"{result.teacher_params / 1e6:.1f} M → {result.params / 1e6:.1f} M parameters, "
        f"{result.teacher_macs / macs:.1f} → {result.macs / macs:.1f} {unit} "
        f"({result.macs / result.teacher_macs:.3f}×)."
    )
    if result.audit:
        lines += _describe_audit(result.audit, result.stage1)
    if result.weights == RANDOM:
        lines.append(f"The weights of {plain(result.family)} are random.")
    loader = "diffusers.UNet2DConditionModel" if result.plain_diffusers else "asdm.StudentUNet"
    lines.append(f"Wrote {output}, which {loader}.from_pretrained loads.")
    return "\n".join(lines)


def _describe_audit(audit: FreezeAudit, stage1: str | None) -> list[str]:
    rows = {
        f"learn, grafted from {plain(str(stage1))}": audit.trainable,
        "are frozen": audit.frozen,
        "share the teacher's memory": audit.shared_with_teacher,
    }
    return [
        f"{len(group.names)} tensors {what}: {group.params / 1e6:.1f} M parameters, {group.bytes / 2**20:.0f} MiB."
        for what, group in rows.items()
    ]

"""Build a student on disk: teacher → surgery → a diffusers folder, with what was removed and replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from asdm import flops, measure, models, students
from asdm.families import load_family
from asdm.plan import PruningPlan
from asdm.results import BuildResult

Tell = Callable[[str, int, float | None], None]
DEFAULT_FAMILY = "sd15"


def build_student(
    source: str,
    teacher: str | None,
    output: Path,
    weights: str | None = None,
    device: str = "cpu",
    dtype: str = "fp32",
    seed: int = 0,
    force: bool = False,
    tell: Tell = lambda *_: None,
) -> BuildResult:
    """Build the student of a plan file or preset and save it to the folder `output`, whole or not at all.

    Raises ValueError for a plan that does not fit its teacher, too little memory, or a folder that exists.
    """
    models.check_setup(models.Setup(weights, device, dtype))
    family = load_family(teacher or _family_of(source))
    weights = weights or models.default_weights(family)
    shapes = models.meta_unet(family, dtype)
    plan = students.read_plan(source, shapes, family.name)
    meta_inputs = models.unet_inputs(family, device="meta", dtype=dtype)
    before = flops.count(shapes, (), meta_inputs)
    small, applied = students.build(shapes, plan)
    after = flops.count(small, (), meta_inputs)
    measure.require_memory(int(before.parameter_bytes * 1.1), device, f"building a student of {family.name}")

    tell("loading the teacher", 0, None)
    unet = models.load_unet(family, weights, device, dtype, seed)
    tell("operating", 0, None)
    student, _ = students.build(unet, plan)
    result = BuildResult(
        name=plan.name,
        family=family.name,
        weights=weights,
        params=after.params,
        macs=after.total.macs,
        teacher_params=before.params,
        teacher_macs=before.total.macs,
        removed=applied.removed,
        replaced=applied.replaced,
        name_map=applied.name_map,
        plain_diffusers=type(student).__name__ == "UNet2DConditionModel",
        plan_sha256=plan.sha256(),
        warning=plan.not_measured_at(device=device, dtype=dtype),
    )
    tell(f"saving {after.parameter_bytes / 2**30:.1f} GiB", 0, None)
    students.save(student, plan, result, output, force)
    return result


def _family_of(source: str) -> str:
    return (
        DEFAULT_FAMILY if source in students.PRESETS or not Path(source).exists() else PruningPlan.load(source).family
    )


def describe(result: BuildResult, output: Path) -> str:
    """What was removed and replaced, unit by unit, and what is left."""
    lines = [f"{result.name}: {len(result.removed)} parts removed, {len(result.replaced)} replaced in {result.family}."]
    lines += [f"  - {fqn}" for fqn in result.removed]
    lines += [f"  ~ {fqn} → {name}" for fqn, name in result.replaced.items()]
    lines.append(
        f"{result.teacher_params / 1e6:.1f} M → {result.params / 1e6:.1f} M parameters, "
        f"{result.teacher_macs / 1e9:.1f} → {result.macs / 1e9:.1f} GMAC "
        f"({result.macs / result.teacher_macs:.3f}×)."
    )
    loader = "diffusers.UNet2DConditionModel" if result.plain_diffusers else "asdm.StudentUNet"
    lines.append(f"Wrote {output}, which {loader}.from_pretrained loads.")
    return "\n".join(lines)

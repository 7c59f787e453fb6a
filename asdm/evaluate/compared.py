"""The UNets of a comparison: named, checked and counted on the meta device, then loaded or built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from asdm.evaluate.settings import BenchSettings
from asdm.models import graft, loading
from asdm.models.families import Family, load_family
from asdm.models.student import build, read_plan
from asdm.plan.legality import ResolvedPlan
from asdm.records.build import BuildResult
from asdm.unet import surgery


@dataclass
class ComparedUNet:
    """A UNet of the comparison: on the meta device for counting, and with weights for timing."""

    name: str
    source: str
    shapes: nn.Module
    unet: nn.Module
    resolved: ResolvedPlan | None = None
    removed: tuple[str, ...] = ()
    replaced: dict[str, str] = field(default_factory=dict)

    @property
    def is_folder(self) -> bool:
        return Path(self.source).is_dir()


def without_weights(source: str, teacher: nn.Module, family: Family, settings: BenchSettings) -> ComparedUNet:
    """A student on the meta device, where a plan that does not fit its teacher is found before anything is loaded."""
    if Path(source).is_dir():
        return _folder_without_weights(source, teacher, family, settings)
    resolved = read_plan(source, teacher, family.name)
    shapes, applied = _built(resolved, teacher, lambda stage1: loading.meta_unet(stage1, settings.dtype))
    return ComparedUNet(resolved.plan.name, source, shapes, shapes, resolved, applied.removed, applied.replaced)


def with_distinct_names(students: Sequence[ComparedUNet]) -> list[ComparedUNet]:
    """Adds as much of the path as is needed to folders of the same name, such as `a/seed-1` and `b/seed-1`."""
    named = list(students)
    for parts in range(2, 1 + max((len(Path(student.source).parts) for student in students), default=0)):
        counts = Counter(student.name for student in named)
        named = [
            replace(student, name="/".join(Path(student.source).parts[-parts:]))
            if student.is_folder and counts[student.name] > 1
            else student
            for student in named
        ]
    return named


def _folder_without_weights(source: str, teacher: nn.Module, family: Family, settings: BenchSettings) -> ComparedUNet:
    """A student's folder; the plan in it, where there is one, is checked against the teacher."""
    folder, shapes = Path(source), loading.meta_unet(load_family(source), settings.dtype)
    path = folder / "plan.json"
    resolved = read_plan(str(path), teacher, family.name) if path.exists() else None
    record = BuildResult.load(folder / "build.json") if (folder / "build.json").exists() else None
    removed, replaced = (record.removed, record.replaced) if record else ((), {})
    return ComparedUNet(folder.resolve().name, source, shapes, shapes, resolved, removed, replaced)


def load_weights(student: ComparedUNet, teacher: nn.Module, settings: BenchSettings) -> nn.Module:
    """The UNet with weights; what a plan keeps of the teacher shares the teacher's memory."""

    def load(folder: Family) -> nn.Module:
        return loading.load_unet(folder, str(folder.folder), settings.device, settings.dtype)

    if student.is_folder:
        return load(load_family(student.source))
    assert student.resolved is not None, "only a folder has no plan"
    return _built(student.resolved, teacher, load)[0]


def _built(
    resolved: ResolvedPlan, teacher: nn.Module, load: Callable[[Family], nn.Module]
) -> tuple[nn.Module, surgery.Applied]:
    """The student of a plan; `load` gives the stage-1 student that its grafts come from."""
    if not resolved.grafted:
        return build(teacher, resolved)
    source = graft.stage1_of(resolved.plan)
    if source is None:
        raise ValueError(
            f"the plan {resolved.plan.name} grafts blocks but names no stage-1 student; give its graft_block edits a "
            "source, or build it with `asdm build --stage1` and name its folder."
        )
    stage1 = graft.stage1_family(source)
    return graft.assemble(teacher, load(stage1), resolved, graft.edits_in(stage1))

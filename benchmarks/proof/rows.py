"""The rows of the proof: where a student's plan comes from, which recipe trains it, and what is changed in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from asdm.distill import recipes
from asdm.distill.stages import Recipe

TEACHER = "teacher"
PLANNED, BK_STYLE = "planned", "bk_style"


@dataclass(frozen=True)
class Row:
    """One way to make a student.

    `plan` is a preset; "planned" (the least measured damage within the budget); "planned=PRESET" (the same at that
    preset's latency); or "bk_style" (BK-SDM's rule at the latency of "planned"). Latencies are equal by the profile;
    the measured ones stand beside them.
    """

    name: str
    what: str
    plan: str = ""
    recipe: str = ""
    without: tuple[str, ...] = ()  # replacements that are left out of the plan
    mode: str | None = None
    weights: Mapping[str, float] | None = None
    normalise: bool | None = None
    rival: str | None = None  # the row that it is compared with at the same latency
    ablates: str | None = None  # the row that it equals except for one part

    def stages(self) -> Recipe:
        return recipes.adjust(recipes.load(self.recipe), self.mode, self.weights, self.normalise)


PAPER = Row("a_sdm", "the paper’s assembly and recipe", "a_sdm_clme", "progressive_incubation")
OURS = Row("ours", "planned on measured damage, everything learns, features in the teacher’s units", PLANNED, "bk_sdm",
           normalise=True, rival="bk_sdm")  # fmt: skip
ROWS = (
    Row(TEACHER, "the teacher"),
    Row("bk_sdm", "BK-SDM’s rule at our latency, BK-SDM’s recipe", BK_STYLE, "bk_sdm"),
    Row("bk_sdm_base", "BK-SDM-Base, BK-SDM’s recipe", "bk_sdm_base", "bk_sdm"),
    PAPER,
    OURS,
    replace(OURS, name="ours_at_base", what="as ours, at the latency of BK-SDM-Base", plan=f"{PLANNED}=bk_sdm_base",
            rival="bk_sdm_base"),
    replace(OURS, name="ours_raw", what="with BK-SDM’s own recipe, features summed raw", normalise=None, rival=None,
            ablates="ours"),
    replace(PAPER, name="no_stage1", what="without stage 1", recipe="without_incubation", ablates="a_sdm"),
    replace(PAPER, name="no_clme", what="without CLME", plan="a_sdm", ablates="a_sdm"),
    replace(PAPER, name="gate_timestep", what="gates on the timestep instead of the input", plan="a_sdm_clme_timestep",
            ablates="a_sdm"),
    replace(PAPER, name="no_gri", what="without GRI", without=("gri_attention",), ablates="a_sdm"),
    replace(PAPER, name="no_mid_block", what="without the mid-block loss", weights={"mid_block": 0.0}, ablates="a_sdm"),
    replace(PAPER, name="no_vgg", what="without the VGG loss", weights={"perceptual": 0.0}, ablates="a_sdm"),
    replace(PAPER, name="blockwise", what="blockwise instead of end to end", mode="blockwise", ablates="a_sdm"),
)  # fmt: skip


def chosen_rows(names: Sequence[str] = ()) -> tuple[Row, ...]:
    """Rows by name, in the order of `ROWS` and with the teacher; all of them if none is named.

    Raises ValueError for an unknown name.
    """
    known = [row.name for row in ROWS]
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"unknown row {unknown[0]!r}; choose from {', '.join(known)}.")
    return tuple(row for row in ROWS if not names or row.name in names or row.name == TEACHER)

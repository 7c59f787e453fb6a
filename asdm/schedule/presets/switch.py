"""One network until a step, another after it: a student for the coarse part, then the teacher, or the reverse."""

from __future__ import annotations

from asdm.plan.topology import Topology
from asdm.schedule.presets import FULL, Steps
from asdm.schedule.schedule import Pass


def make(topology: Topology, steps: int, *, step: int = 15, student: str = "", first: str = "student") -> Steps:
    """`student` is a folder, a plan or a preset of pruning; `first` is student or teacher."""
    if steps < 2:
        raise ValueError(f"switch needs at least 2 steps, got {steps}.")
    if not student:
        raise ValueError(f"switch needs a student: switch:step={steps // 2},student=DIR.")
    if first not in ("student", "teacher"):
        raise ValueError(f"first of switch must be student or teacher, got {first!r}.")
    if not 0 < step < steps:
        raise ValueError(f"step of switch must be between 1 and {steps - 1}, got {step}.")
    second = "teacher" if first == "student" else "student"
    passes = {"student": Pass(network="student"), "teacher": FULL}
    return Steps(passes, [first if now < step else second for now in range(steps)], {"student": student})

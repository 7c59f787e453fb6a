"""Times a candidate against the teacher, in pairs, while nothing else of this project works on the machine."""

from __future__ import annotations

from typing import Any

from asdm.evaluate import benchmark
from asdm.evaluate.settings import BenchSettings
from asdm.utils.progress import Tell
from asdm_prof.search.context import SearchContext
from asdm_prof.search.study import SharedStudy


def time_candidate(context: SearchContext, study: SharedStudy, candidate: int, tell: Tell) -> dict[str, Any]:
    """A candidate's UNet latency, MACs and parameters; measured once, as training does not change its shape."""
    for trial in study.measured_trials():
        if trial.params["candidate"] == candidate:
            return dict(trial.user_attrs["latency"])
    known = study.settings
    settings = BenchSettings(
        weights=context.weights,
        **{name: known[f"timed_{name}"] for name in ("backend", "dtype", "device", "threads", "batch")},
        seed=context.settings.seed,
        size=known["size"],
        steps=1,
        guidance_scale=0.0,
        time_budget_s=context.settings.time_budget_s,
    )
    tell("waiting for the machine", 0, None)
    with context.host.timing():
        result = benchmark.bench(context.teacher, [str(context.plan_file(candidate))], settings, tell)
    (student,) = result.students
    return {
        "ratio": student.unet_latency_ratio.model_dump(),
        "student_s": student.unet_latency_s.samples,
        "teacher_s": student.paired_teacher_latency_s.samples,
        "macs": student.macs,
        "params": student.params,
    }

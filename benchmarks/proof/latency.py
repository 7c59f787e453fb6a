"""Times every row's plan in pairs with the teacher; latency does not depend on what a student has learnt."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from asdm.evaluate import benchmark
from asdm.evaluate.settings import BenchSettings
from asdm.measure import statistics
from asdm.records.bench import BenchStudent
from asdm.utils.io import sha256_of
from asdm.utils.progress import Tell
from benchmarks.proof.records import Proof, ProofLatency, ProofRow, ProofTiming
from benchmarks.proof.settings import ProofSettings


def time_rows(
    proof: Proof,
    settings: ProofSettings,
    folder: Path,
    backend: str = "eager",
    pairs: int = 40,
    tell: Tell = lambda *_: None,
    command: str = "",
) -> Proof:
    """The proof with every row's latency: each plan's student, with the teacher's weights, in pairs with the teacher.

    Rows of one plan are timed once. The machine should be otherwise idle.
    """
    if pairs < 4:
        raise ValueError(f"pairs must be at least 4, got {pairs}.")
    shapes = {row.name: _shape_sha256(row) for row in proof.rows[1:]}
    first_rows = {sha256: name for name, sha256 in reversed(shapes.items())}
    result = benchmark.bench(
        settings.family,
        [str(folder / "plans" / f"{name}.json") for name in first_rows.values()],
        BenchSettings(
            backend=backend,
            threads=settings.threads,
            guidance_scale=1.0,
            min_rounds=math.ceil(pairs / 2),
            time_budget_s=math.inf,
            target=math.inf,
        ),
        tell,
        command,
    )
    latencies = {
        sha256: ProofLatency(
            plan_sha256=sha256,
            ratio=student.unet_latency_ratio,
            mean_ratio=statistics.estimate(_ratios(student), np.mean),
            student_s=student.unet_latency_s.samples,
            teacher_s=student.paired_teacher_latency_s.samples,
        )
        for sha256, student in zip(first_rows, result.students, strict=True)
    }
    first, *others = proof.rows
    rows = (first, *(row.model_copy(update={"latency": latencies[shapes[row.name]]}) for row in others))
    timing = ProofTiming(created_utc=result.created_utc, command=command, backend=backend, threads=result.threads,
                         batch=result.batch, environment=result.environment)  # fmt: skip
    return proof.model_copy(update={"rows": rows, "timing": timing})


def _shape_sha256(row: ProofRow) -> str:
    """A hash of the edits, which alone decide a student's latency."""
    return sha256_of([edit.model_dump(mode="json", by_alias=True) for edit in row.edits])


def _ratios(student: BenchStudent) -> list[float]:
    pairs = zip(student.unet_latency_s.samples, student.paired_teacher_latency_s.samples, strict=True)
    return [own_s / teacher_s for own_s, teacher_s in pairs]

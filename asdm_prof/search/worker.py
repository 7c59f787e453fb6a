"""One worker of a search: it takes a job, times, trains and judges the candidate, and goes on until none is left."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress

from asdm.distill.divergence import Diverged
from asdm.plan.edits import PruningPlan
from asdm.utils.progress import Tell
from asdm_prof.search.context import SearchContext
from asdm_prof.search.judging import StudentJudge
from asdm_prof.search.study import Claim, SharedStudy
from asdm_prof.search.timing import time_candidate
from asdm_prof.search.training import train_candidate

POLL_S = 1.0


class Worker:
    """One process of a search."""

    def __init__(self, context: SearchContext, study: SharedStudy, checkpoint_s: float, tell: Tell) -> None:
        self._context, self._study, self._checkpoint_s, self._tell = context, study, checkpoint_s, tell
        self._judge = StudentJudge(context, study.settings["size"])

    def run(self) -> None:
        """Take jobs until every rung has ended."""
        while not self._study.halving.finished(self._study.attempts()):
            claim = self._study.claim(self._context.has_checkpoint)
            if claim is None:
                self._tell("waiting for the other workers", 0, None)
                time.sleep(POLL_S)
                continue
            self._run_trial(claim)
            self._remove_checkpoints_of_dropped_candidates()

    def _run_trial(self, claim: Claim) -> None:
        """One trial, from its claim to its end, however it ends."""
        study, job, metric = self._study, claim.job, self._context.settings.metric
        head = f"candidate {job.candidate}, rung {job.rung + 1} of {study.halving.rungs}"

        def tell(stage: str, count: int, eta_s: float | None) -> None:
            self._tell(f"{head}: {stage}", count, eta_s)

        try:
            plan = PruningPlan.parse(study.plans[job.candidate], f"candidate {job.candidate}")
            plan.save(self._context.plan_file(job.candidate), force=True)
            latency = time_candidate(self._context, study, job.candidate, tell)
            claim.note(latency=latency)
            train_candidate(self._context, study, job, self._checkpoint_s, tell)
            metrics = self._judge.metrics(self._context.student_folder(job), tell)
            claim.note(quality={name: value.model_dump() for name, value in metrics.items()})
            if metric not in metrics:
                data = self._context.settings.data
                raise ValueError(f"{data} has too few captions for {metric}; choose another --metric.")
        except Diverged as error:
            study.fail(claim, "diverged", str(error))
            return
        except BaseException as error:
            with suppress(Exception):  # the first error is the one to report
                study.fail(claim, "left", str(error) or type(error).__name__)
            raise
        study.complete(claim, latency["ratio"]["median"], metrics[metric].value)

    def _remove_checkpoints_of_dropped_candidates(self) -> None:
        """Delete the checkpoints of candidates that will not train on; their students stay."""
        halving, attempts = self._study.halving, self._study.attempts()
        for rung in range(1, halving.rungs):
            kept = halving.candidates_in(rung, attempts)
            if not kept:
                continue
            for candidate in set(halving.candidates_in(rung - 1, attempts) or ()) - set(kept):
                shutil.rmtree(self._context.training_folder(candidate) / "checkpoints", ignore_errors=True)

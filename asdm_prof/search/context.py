"""The fixed facts of a search in one process: teacher, settings, the machine's lock, and where its files lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from asdm.distill.run_folder import PAUSED
from asdm.models import example_inputs, loading
from asdm.models.families import Family
from asdm.utils.locks import MachineLock
from asdm_prof.search.halving import Job
from asdm_prof.search.settings import SearchSettings


@dataclass(frozen=True)
class SearchContext:
    """A search's teacher and settings, with the folders of its candidates under `output`."""

    family: Family
    teacher: str
    settings: SearchSettings
    output: Path
    host: MachineLock = field(default_factory=MachineLock)

    @property
    def weights(self) -> str:
        return self.settings.weights or loading.default_weights(self.family)

    def pixels(self, size: int | None = None) -> int:
        """Pixels per side of the pictures."""
        return example_inputs.latent_size(self.family, size) * self.family.vae_factor

    def plan_file(self, candidate: int) -> Path:
        return self.output / "candidates" / f"{candidate:02d}" / "plan.json"

    def training_folder(self, candidate: int) -> Path:
        return self.output / "candidates" / f"{candidate:02d}" / "training"

    def has_checkpoint(self, job: Job) -> bool:
        """Whether the candidate's training so far lies in this process's folder."""
        return (self.training_folder(job.candidate) / "run.json").exists()

    def student_folder(self, job: Job) -> Path:
        """Where a candidate's student lies at the end of a rung."""
        training = self.training_folder(job.candidate)
        return training if job.rung == self.settings.rungs - 1 else training / PAUSED

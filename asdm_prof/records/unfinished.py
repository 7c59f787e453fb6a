"""What an interrupted measurement saves, so that the same command resumes from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from asdm.utils.record import Record


class UnfinishedRun(Record):
    """The results so far, which a subclass adds as its one field; `run_sha256` is of all that decides them."""

    run_sha256: str

    def resumed_from(self, run_file: Path | None, subject: str, earlier: str | None = None) -> Self:
        """The run saved in `run_file`, or this new one if there is no file.

        `earlier` is what an earlier version would have had for `run_sha256`. Raises ValueError if the file is of
        another `subject` (profile, teacher), or of other data or options.
        """
        if run_file is None or not run_file.exists():
            return self
        saved = type(self).load(run_file)
        if saved.run_sha256 not in (self.run_sha256, earlier):
            raise ValueError(
                f"{run_file} is an unfinished run of another {subject} or with other data or options; "
                "repeat those options, or delete the file."
            )
        return saved

    def plus(self, result: Any, run_file: Path | None) -> Self:
        """The run with one more result, saved in `run_file` if there is one."""
        (field,) = type(self).model_fields.keys() - UnfinishedRun.model_fields.keys()
        run = self.model_copy(update={field: (*getattr(self, field), result)})
        if run_file:
            run.save(run_file, force=True)
        return run

"""One stage in a process of its own: `python -m benchmarks.gpu.process JOB`, with a `Job` as JSON."""

import os
import signal
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path

from pydantic import ValidationError

from asdm.measure import machine
from asdm.measure.device import use_device
from asdm.utils import console
from asdm.utils.record import Frozen, first_problem, utc_now
from benchmarks.gpu.context import Context, Part, Refused
from benchmarks.gpu.records import Files, PartRun, StageFile, StageRun, State

AGAIN = 75  # exit code: a part broke this process, perhaps the GPU's context with it; others are left


class Job(Frozen):
    """A stage for a process; parts of `skip` have had their turn."""

    stage: str
    parts: str  # module:function
    folder: str
    file: str
    device: str
    family: str
    smoke: bool
    command: str
    skip: tuple[str, ...] = ()


class Stage:
    """A stage's record, saved whenever it changes."""

    def __init__(self, job: Job) -> None:
        self.job, self.files = job, Files(Path(job.folder), {job.stage: job.file})
        self.began = time.monotonic()
        earlier = self.files.stage(job.stage)
        self.before_s = earlier.seconds if earlier else 0.0
        self.facts = machine.environment(job.device, os.cpu_count() or 1)
        check_same_machine(self.files.folder, self.facts, job)
        self.run = StageRun(
            started_utc=utc_now(), seconds=self.before_s, smoke=job.smoke, environment=self.facts,
            parts={name: part for name, part in earlier.parts.items() if name in job.skip} if earlier else {},
        )  # fmt: skip
        self.save()

    def put(self, name: str, part: PartRun) -> None:
        """Save a part beside the others."""
        self.save(parts={**self.run.parts, name: part})

    def save(self, **changes: object) -> None:
        """Rewrite the file as a whole; other stages in it stay."""
        seconds = self.before_s + time.monotonic() - self.began
        self.run = self.run.model_copy(update={**changes, "seconds": seconds})
        save_stage(self.files, self.job, self.run)

    def end(self) -> None:
        """What has changed in the environment since the start."""
        after = machine.environment(self.job.device, os.cpu_count() or 1)
        changed = {name: value for name, value in after.items() if self.facts.get(name) != value}
        self.save(changed=changed, complete=True)


def check_same_machine(folder: Path, facts: dict[str, str], job: Job) -> None:
    """Raise ValueError for a folder that holds results of another card, or of a trial run."""
    for path in sorted(folder.glob("gpu-*.json")):
        for name, stage in StageFile.load(path).stages.items():
            for what in ("gpu", "cpu") if stage.environment else ():  # its process died before it knew where it was
                if (there := stage.environment.get(what)) != (here := facts.get(what)):
                    raise ValueError(f"{path} has the stage {name} of the {what} {there}, and this is {here}; {OTHER}")
            if stage.smoke != job.smoke:
                raise ValueError(f"{path} has the stage {name} {WITH[stage.smoke]} --smoke; {OTHER}")


OTHER = "name another output folder."
WITH = {True: "with", False: "without"}


def save_stage(files: Files, job: Job, run: StageRun) -> None:
    """Put a stage into its file."""
    file = files.load(job.stage)
    stages = {**(file.stages if file else {}), job.stage: run}
    StageFile(created_utc=utc_now(), command=job.command, device=job.device, stages=stages).save(
        files.path(job.stage), force=True
    )


def run(job: Job) -> int:
    """Measure the parts that are left; an exit code."""
    from benchmarks.gpu.stages import FILE_OF

    use_device(job.device)
    stage = Stage(job)
    module, _, function = job.parts.partition(":")
    with tempfile.TemporaryDirectory() as work:
        context = Context(
            files=Files(Path(job.folder), {**FILE_OF, job.stage: job.file}), device=job.device, family=job.family,
            smoke=job.smoke, work=Path(work), command=job.command,
        )  # fmt: skip
        try:
            everything: list[Part] = getattr(import_module(module), function)(context)
            parts = [one for one in everything if not {one.name, *one.after} <= set(job.skip)]
        except Exception as error:
            traceback.print_exc()
            stage.save(message=sentence(error))
            return console.FAILED
        for place, part in enumerate(parts, 1):
            if not measure(part, stage) and place < len(parts):
                return AGAIN
    stage.end()
    return 0


def measure(part: Part, stage: Stage) -> bool:
    """Measure a part and save how it ended; False if this process can no longer be used."""
    console.say(f"{stage.job.stage}: {part.name}")
    stage.put(part.name, PartRun())
    began = time.monotonic()

    def ended(state: State, error: BaseException) -> None:
        message, seconds = sentence(error), time.monotonic() - began
        stage.put(part.name, PartRun(state=state, message=message, seconds=seconds))
        console.say(f"{stage.job.stage}: {part.name} {state} after {seconds:.0f} s: {message}")

    try:
        result = part.measure()
    except Refused as error:
        ended("refused", error)
    except KeyboardInterrupt:
        ended("interrupted", ValueError("it was interrupted"))
        raise
    except ValueError as error:
        ended("failed", error)
    except Exception as error:
        traceback.print_exc()
        ended("failed", error)
        return False
    else:
        stage.put(part.name, PartRun(state="done", seconds=time.monotonic() - began, result=result))
    return True


def sentence(error: BaseException) -> str:
    """The first line of what an error says, with its type where that is not plain."""
    if isinstance(error, ValidationError):
        return f"{error.title}: {first_problem(error)}"
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background has children ignore
    console.quiet_libraries()
    try:
        sys.exit(run(Job.model_validate_json(sys.argv[1])))
    except ValueError as error:
        console.say(f"Error: {sentence(error)}")
        sys.exit(console.USAGE)
    except KeyboardInterrupt:
        sys.exit(console.INTERRUPTED)

"""Distillation: stages that are data, and the one loop that runs them all (§2.2, §2.5).

Everything random follows from (seed, stage, step, place in the batch): which pictures a step gets, their noise, their
timesteps, whose caption is dropped. So a checkpoint is weights, moments, averages and a number, and a run that was
killed and taken up again ends with the same bits as one that was not.

Before anything runs:

- `settings`: what a user may set, and the check that names what cannot be.
- `course`: stages, and a recipe of them made concrete for one teacher.
- `estimate`: a stage from its shapes alone: what learns, and in how much memory.

A run:

- `run`: all stages, one after the other.
- `folder`: whose the run's folder is, and how far it got.
- `classroom`: what all stages share: the teacher, its encoders, the data.

One stage:

- `making`: its student, what that is to learn, its optimizer and its average.
- `training`: its steps.
- `draws`: what is random in them.
- `trouble`: what goes wrong in them.
- `keeping`: its checkpoints and its student.
- `log`: what is shown of it.
"""

from asdm.distill.context import Status, Watch, is_main_process
from asdm.distill.divergence import Diverged
from asdm.distill.dry_run import described, preview
from asdm.distill.run import distil
from asdm.distill.run_folder import PAUSED
from asdm.distill.settings import DistillSettings, check
from asdm.distill.setup import make_average, make_optimizer
from asdm.distill.stages import TEACHER, Course, Recipe, Stage, own_memory, plan_course, small_student

__all__ = [
    "PAUSED",
    "TEACHER",
    "Course",
    "DistillSettings",
    "Diverged",
    "Recipe",
    "Stage",
    "Status",
    "Watch",
    "check",
    "described",
    "distil",
    "is_main_process",
    "make_average",
    "make_optimizer",
    "own_memory",
    "plan_course",
    "preview",
    "small_student",
]

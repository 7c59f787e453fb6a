"""Distillation: a recipe's stages, and the one loop that trains them all (§2.2, §2.5).

All randomness follows from (seed, stage, step, position in the batch): which pictures a step gets, their noise, their
timesteps, which captions are dropped. A checkpoint is therefore weights, optimizer moments, the EMA and a step number,
and a run that was interrupted and resumed ends with the same bits as one that was not.

Before a run:

- `settings`: what a user may set, and its validation.
- `recipes`, `stages`: recipes, their stages, and a recipe resolved for one teacher.
- `dry_run`: a stage from its shapes alone: what would learn, and in how much memory.

A run:

- `run`: all stages, one after the other.
- `run_folder`: the run's folder: which run it belongs to, its lock, and how far it got.
- `context`: what all stages share: the teacher, its encoders, the data.

One stage:

- `setup`: its student, objective, optimizer and EMA.
- `trainer`: the training loop.
- `task`: one forward of student and teacher, and the loss terms.
- `sampling`: what is random in a step.
- `divergence`: losses that are not finite or spike, and signals that ask for a stop.
- `checkpoint`: its checkpoints and its student.
- `logger`: the log, TensorBoard and validation pictures.
"""

from asdm.distill.context import ProgressCallback, TrainProgress, is_main_process
from asdm.distill.divergence import Diverged
from asdm.distill.dry_run import preview, preview_stage
from asdm.distill.run import distill
from asdm.distill.run_folder import PAUSED
from asdm.distill.settings import DistillSettings, check
from asdm.distill.setup import make_ema, make_optimizer
from asdm.distill.stages import TEACHER, Recipe, ResolvedRecipe, Stage, make_trainable, meta_student, resolve_recipe

__all__ = [
    "PAUSED",
    "TEACHER",
    "DistillSettings",
    "Diverged",
    "ProgressCallback",
    "Recipe",
    "ResolvedRecipe",
    "Stage",
    "TrainProgress",
    "check",
    "distill",
    "is_main_process",
    "make_ema",
    "make_optimizer",
    "make_trainable",
    "meta_student",
    "preview",
    "preview_stage",
    "resolve_recipe",
]

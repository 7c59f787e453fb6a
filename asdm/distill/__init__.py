"""Distillation: a recipe's stages, and the one loop that trains them all (§2.2, §2.5).

All randomness follows from (seed, stage, step, position in the batch): which images a step gets, their noise, their
timesteps, which captions are dropped. A checkpoint is therefore weights, optimizer moments, the EMA and a step number,
and a run that was interrupted and resumed ends with the same bits as one that was not.

Before a run:

- `settings`: what a user may set, and its validation.
- `recipes`, `stages`: recipes, their stages, and a recipe resolved for one teacher.
- `dry_run`, `memory`: a stage from its shapes alone: what would learn, and in how much memory.

A run:

- `run`: all stages, one after the other.
- `run_folder`: the run's folder: which run it belongs to, its lock, and how far it got.
- `context`: what all stages share: the teacher, its encoders, the data.

One stage:

- `setup`: its student, objective, optimizer and EMA.
- `trainer`: the training loop.
- `task`: one forward of student and teacher, and the loss terms.
- `losses`: the loss terms, one file each.
- `sampling`: what is random in a step.
- `precision`: TF32, determinism, half precision of what is frozen, compiled units.
- `phases`: what a step's time goes into.
- `divergence`: losses that are not finite or spike, and signals that ask for a stop.
- `checkpoint`: its checkpoints and its student.
- `logger`: the log, TensorBoard and validation images.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    # A user's own recipe makes `asdm.distill.Stage`s; importing torch for the settings alone would cost seconds.
    if name in ("TEACHER", "Recipe", "Stage"):
        from asdm.distill import stages

        return getattr(stages, name)
    raise AttributeError(f"module 'asdm.distill' has no attribute {name!r}")

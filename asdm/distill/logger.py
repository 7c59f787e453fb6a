"""What a run logs: a JSON line per step, TensorBoard, and validation images of teacher and student."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from asdm.data import datasets
from asdm.distill import losses
from asdm.distill.checkpoint import ema_weights
from asdm.distill.context import TrainContext, TrainProgress
from asdm.distill.run_folder import LOG
from asdm.distill.stages import Stage
from asdm.models import example_inputs
from asdm.unet import hooks
from asdm.unet.replacements import cond_conv
from asdm.utils import disk
from asdm.utils.io import write_whole

GATES_EVERY = 100  # steps


class TrainLogger:
    """The run's `log.jsonl`, and TensorBoard with --tensorboard."""

    def __init__(self, context: TrainContext, stage: Stage, offset: int, step: int) -> None:
        self.stage, self.offset = stage, offset
        self.file = JsonlWriter(context.folder / LOG, offset + step)
        self.board = _board(context.folder / "tensorboard", offset + step) if context.settings.tensorboard else None

    def step(
        self,
        step: int,
        status: TrainProgress,
        values: Mapping[str, float],
        rate: float,
        norm: float,
        seconds: float,
        gates: Mapping[str, list[float]],
    ) -> None:
        """Write a step; a gradient norm that is not finite is null, and the step of fp16 is marked as skipped."""
        finite = math.isfinite(norm)
        line = {
            "step": self.offset + step,
            "stage": self.stage.name,
            "stage_step": step,
            "loss": sum(status.terms.values()),
            **values,
            "learning_rate": rate,
            "gradient_norm": norm if finite else None,
            **({} if finite else {"skipped": True}),
            "step_s": round(seconds, 6),
            "images_per_s": round(status.images_per_s, 3),
            **({"gates": gates} if gates else {}),
        }
        self.file.write(line)
        if self.board:
            for name in ("loss", *values, "learning_rate", "gradient_norm", "images_per_s"):
                if line[name] is not None:
                    self.board.add_scalar(name, line[name], self.offset + step)
            for name, value in status.terms.items():
                self.board.add_scalar(f"share/{name}", value, self.offset + step)

    def close(self) -> None:
        self.file.close()
        if self.board:
            self.board.close()


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise ValueError("--tensorboard needs the package tensorboard; pip install 'asdm-prof[tensorboard]'.") from None
    return SummaryWriter(str(folder), purge_step=step + 1)


class JsonlWriter:
    """A JSONL file with a line per step, flushed at once; lines after `after_step` are dropped when it is opened."""

    def __init__(self, path: Path, after_step: int) -> None:
        self.path = path
        kept = (text for text, line in _lines(path, {"step": int}) if line["step"] <= after_step)
        write_whole(path, "".join(f"{text}\n" for text in kept), True)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise ValueError(f"{disk.cannot_write(self.path, error)}.") from None

    def close(self) -> None:
        with suppress(OSError):  # a full disk, reported by write()
            self._file.close()


def _lines(path: Path, needed: Mapping[str, type]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Complete lines, as text and read; the last one is incomplete if the process was killed while writing it.

    Raises ValueError for any other line without the needed fields.
    """
    *texts, _ = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [""]
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict) or any(type(line.get(name)) is not kind for name, kind in needed.items()):
            raise ValueError(f"{path}: line {number} is not a training step; delete it, or choose another output.")
        yield text, line


def read_log(path: Path) -> list[dict[str, Any]]:
    """All lines of a run's log."""
    return [line for _, line in _lines(path, {"step": int, "stage": str})]


def first_and_last_losses(lines: Sequence[Mapping[str, Any]], stage: str) -> dict[str, dict[str, float]]:
    """Mean of each loss over the first and the last tenth of a stage's steps."""
    steps = [line for line in lines if line["stage"] == stage]
    count = max(len(steps) // 10, 1)
    terms = losses.names()
    names = dict.fromkeys(name for line in steps for name in line if name == "loss" or name in terms)

    def mean(part: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        values = {name: [line[name] for line in part if isinstance(line.get(name), float | int)] for name in names}
        return {name: sum(some) / len(some) for name, some in values.items() if some}

    return {"first": mean(steps[:count]), "last": mean(steps[-count:])}


def last_gates(lines: Sequence[Mapping[str, Any]], stage: str) -> dict[str, list[float]]:
    """How far a stage's gates were open when they were last logged; empty where it has none."""
    return next((line["gates"] for line in reversed(lines) if line["stage"] == stage and "gates" in line), {})


@torch.no_grad()
def gates_opened(model: nn.Module, inputs: Sequence[Any]) -> dict[str, list[float]]:
    """How far the gates of a task's student open on some inputs (§2.3); empty where it has none."""
    student = hooks.bare(model).student
    if not any(isinstance(module, cond_conv.CondConv2d) for module in student.modules()):
        return {}
    with cond_conv.watched_gates(student) as opened:
        model(*inputs)
    return opened


@torch.no_grad()
def save_validation_images(
    context: TrainContext, stage: Stage, model: nn.Module, ema: Any, parameters: Sequence[nn.Parameter], step: int
) -> None:
    """Images of a few captions from the same seeds: the teacher's above, the student's EMA's below."""
    import io

    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    from asdm.evaluate.generation import generate_images

    captions = datasets.captions_of(context.data, context.settings.validate_captions)
    side = example_inputs.latent_size(context.recipe.family, context.settings.size) * context.recipe.family.vae_factor
    student = hooks.bare(model).student
    rows = []
    student.eval()
    try:
        with ema_weights(ema, parameters), context.accelerator.autocast():  # frozen weights may be in half precision
            for unet in (context.teacher, student):
                context.pipeline.unet = unet
                guidance = context.recipe.family.guidance_scale
                rows.append(generate_images(context.pipeline, captions, 0, 20, guidance, size=side).images)
    finally:
        context.pipeline.unet = context.teacher
        student.train()
    grid = make_grid(torch.cat(rows), nrow=len(captions), normalize=True, value_range=(-1, 1))
    stream = io.BytesIO()
    to_pil_image(grid).save(stream, format="PNG")
    write_whole(context.folder / "validation" / f"step-{step:08d}-{stage.name}.png", stream.getvalue(), force=True)

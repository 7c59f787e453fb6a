"""One resumable loop for everything that the mini is made of.

Nothing is random but by (seed, step): the batch, the noise and the dropout of a step follow from its number alone. So
a checkpoint is weights, optimizer and a step number, and a run that was killed and taken up again ends with the same
bits as one that was not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from safetensors.torch import load_file, save
from torch import nn

from asdm.files import make_folder, write_whole

Terms = dict[str, torch.Tensor]
Tell = Callable[[str, int, float | None], None]
CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"
LOG_EVERY = 10


@dataclass(frozen=True)
class Stage:
    """What is trained, on what, and how; `loss(indices, generator)` gives named terms, "loss" being their sum."""

    name: str
    module: nn.Module
    examples: int
    loss: Callable[[torch.Tensor, torch.Generator], Terms]
    steps: int
    batch: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warm_up: int = 100
    ema_decay: float = 0.997
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, constant, linear decay over the second half."""
        rising = (step + 1) / self.warm_up
        falling = (self.steps - step) / (self.steps / 2)
        return self.learning_rate * min(1.0, rising, falling)

    def batch_of(self, step: int) -> torch.Tensor:
        """Indices (batch,) of a step: a new order every epoch, the last incomplete batch left out."""
        epoch, position = divmod(step, self.examples // self.batch)
        order = torch.randperm(self.examples, generator=seeded(self.seed, epoch, 1))
        return order[position * self.batch : (position + 1) * self.batch]


def seeded(seed: int, number: int, stream: int = 0) -> torch.Generator:
    """The generator of one step (or epoch) of one stream."""
    return torch.Generator().manual_seed((seed * 1_000_003 + number) * 4 + stream)


class Run:
    """A stage under way: its weights, their running average, and AdamW's moments."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage, self.folder, self.step = stage, folder, 0
        self.names = [name for name, p in stage.module.named_parameters() if p.requires_grad]
        self.parameters = [p for p in stage.module.parameters() if p.requires_grad]
        self.ema = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, stage.learning_rate, stage.betas, weight_decay=stage.weight_decay, foreach=True
        )
        if (folder / CHECKPOINT).exists():
            self._resume()

    def advance(self) -> dict[str, float]:
        """One step; returns the loss terms. Raises ValueError where the loss is no number."""
        stage, step = self.stage, self.step
        for group in self.optimizer.param_groups:
            group["lr"] = stage.rate(step)
        terms = stage.loss(stage.batch_of(step), seeded(stage.seed, step))
        values = {name: float(term.detach()) for name, term in terms.items()}
        if values["loss"] != values["loss"]:
            raise ValueError(f"the loss of {stage.name} is not a number at step {step}; {self.folder} keeps the last.")
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        decay = min(stage.ema_decay, (1 + step) / (10 + step))  # a young average forgets its random beginning
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1 - decay)
        self.step += 1
        return values

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        tensors = {"step": torch.tensor(self.step), "steps": torch.tensor(self.stage.steps)}
        for name, parameter, ema in zip(self.names, self.parameters, self.ema, strict=True):
            moments = self.optimizer.state[parameter]
            tensors[f"weight/{name}"] = parameter.detach().contiguous()
            tensors[f"ema/{name}"] = ema
            tensors[f"mean/{name}"] = moments["exp_avg"].contiguous()
            tensors[f"square/{name}"] = moments["exp_avg_sq"].contiguous()
        write_whole(self.folder / CHECKPOINT, save(tensors), force=True)

    def _resume(self) -> None:
        stored = load_file(self.folder / CHECKPOINT)
        self.step = int(stored["step"])
        with torch.no_grad():
            for name, parameter, ema in zip(self.names, self.parameters, self.ema, strict=True):
                parameter.copy_(stored[f"weight/{name}"])
                ema.copy_(stored[f"ema/{name}"])
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": stored[f"mean/{name}"].clone(memory_format=torch.preserve_format),
                    "exp_avg_sq": stored[f"square/{name}"].clone(memory_format=torch.preserve_format),
                }

    def use_average(self) -> nn.Module:
        """The module with the running average for its weights."""
        with torch.no_grad():
            for parameter, ema in zip(self.parameters, self.ema, strict=True):
                parameter.copy_(ema)
        return self.stage.module.eval()


def train(stage: Stage, folder: Path, tell: Tell, checkpoint_s: float = 60.0, stop_at: int | None = None) -> nn.Module:
    """Train to the last step, from the folder's checkpoint where there is one; returns the averaged module."""
    make_folder(folder)
    run = Run(stage, folder)
    log = _log_until(folder / LOG, run.step)
    began, first, saved = time.monotonic(), run.step, time.monotonic()
    end = min(stage.steps, stop_at or stage.steps)
    stage.module.train()
    try:
        while run.step < end:
            terms = run.advance()
            now = time.monotonic()
            pace = (now - began) / (run.step - first)
            if (run.step - 1) % LOG_EVERY == 0:
                line = {"step": run.step - 1, "rate": stage.rate(run.step - 1)} | terms
                log.write(json.dumps(line | {"images_per_s": round(stage.batch / pace, 1)}) + "\n")
            tell(stage.name, run.step, pace * (end - run.step))
            if now - saved > checkpoint_s:
                run.save()
                log.flush()
                saved = now
        run.save()
    finally:
        log.close()
    return run.use_average()


def _log_until(path: Path, step: int) -> TextIO:
    """The log, open to go on after `step`: lines of steps that will be taken again are dropped."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < step]
    write_whole(path, "".join(f"{line}\n" for line in kept), force=True)
    return path.open("a")

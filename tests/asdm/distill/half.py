"""fp16's gradient scaler on a CPU: the arithmetic stays fp32, and everything around the scaler is what a GPU runs."""

from typing import Any

import pytest
import torch
from accelerate.utils import AutocastKwargs

from asdm.distill import run, stages
from asdm.distill.context import make_accelerator


def scale_gradients(patch: pytest.MonkeyPatch, **scaler: Any) -> None:
    """Let runs with `dtype="fp16"` start on a CPU."""

    def make(settings: Any) -> Any:
        accelerator = make_accelerator(settings)
        accelerator.native_amp, accelerator.autocast_handler = True, AutocastKwargs(enabled=False)
        accelerator.scaler = torch.amp.GradScaler("cpu", **scaler)
        return accelerator

    patch.setattr(run, "make_accelerator", make)
    patch.setattr(stages, "check_settings", lambda _: None)

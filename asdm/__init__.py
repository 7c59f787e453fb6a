"""A-SDM's core: apply a pruning plan to a Stable Diffusion UNet, and measure the student against its teacher."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # diffusers finds a saved student by `asdm.StudentUNet`, and asks beside it for the ModelMixin that says how to load
    # it; importing torch for anything less would cost seconds.
    if name == "StudentUNet":
        from asdm.models.student import StudentUNet

        return StudentUNet
    if name == "ModelMixin":
        from diffusers import ModelMixin

        return ModelMixin
    raise AttributeError(f"module 'asdm' has no attribute {name!r}")

"""The small real Stable Diffusion that this project trains and ships: weights, and how they were made.

`weights/` is a plain diffusers folder; beside it are the CLIP that its text encoder began as, a small VGG for
perceptual losses, and the judge, a network of another kind that no training of a UNet has seen.
Trained by `python -m benchmarks.mini PART`; the model card is README.md in this folder.
"""

from __future__ import annotations

from pathlib import Path

PIPELINE = Path(__file__).parent / "weights"

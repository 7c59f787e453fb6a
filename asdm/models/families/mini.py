"""The small real Stable Diffusion that ships with this package: 96×96 emoji, SD 1.5's topology, trained weights."""

from dataclasses import replace
from pathlib import Path

from asdm.models.families import from_folder

FAMILY = replace(
    from_folder(Path(__file__).parents[2] / "mini" / "weights"),
    name="mini",
    title="Mini Stable Diffusion",
    licence="cc-by-sa-4.0",
    source=None,
    guidance_scale=3.0,  # at 8 colours burn and outlines fray (reports/mini/contact-guidance-8.png)
)

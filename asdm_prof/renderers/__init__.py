"""Renderers: one file or package each, a function of saved records. Nothing here measures anything.

A renderer defines `OUTPUT`, the name of what it writes (None: nothing), and `render(report, folder) -> list[Path]`,
which writes it into `folder` and returns the files.
"""

from asdm_prof.renderers._collect import FamilyCost, Report

__all__ = ["FamilyCost", "Report"]

"""What was found beside the profile, for the page.

Each function returns what the template shows of it, or None (an empty list) where it was not measured.
"""

from asdm_prof.renderers.html.outcomes.damage import damage
from asdm_prof.renderers.html.outcomes.plans import budgets, frontier, validation, why
from asdm_prof.renderers.html.outcomes.students import (
    PICTURE_BYTES,
    pictures,
    proof,
    quality,
    quality_caption,
    search,
    training,
)
from asdm_prof.renderers.html.outcomes.surroundings import beside, comparison, roofline

__all__ = [
    "PICTURE_BYTES", "beside", "budgets", "comparison", "damage", "frontier", "pictures", "proof", "quality",
    "quality_caption", "roofline", "search", "training", "validation", "why",
]  # fmt: skip

"""Which network judges pictures: the bundled one on emoji, a CLIP that was named or is available on anything else."""

from __future__ import annotations

from typing import Any

from asdm.data.choice import MINI, is_emoji
from asdm.models import networks
from asdm.utils import console

CLIP = "openai/clip-vit-large-patch14"  # the usual one where none is named


def judge_for(named: str | None, data: str) -> Any:
    """The judge that was named, or that suits a data set; None, which a message says, where no CLIP is available."""
    if named == MINI or (named is None and is_emoji(data)):
        return networks.Judge.load()
    if named:
        return networks.ClipJudge(named)
    try:
        judge = networks.ClipJudge(CLIP, local_files_only=True)
    except ValueError:
        console.say_once(
            f"{CLIP} is not in the hub's cache: metrics of a CLIP are left out (--judge DIR|HUB_ID names one)."
        )
        return None
    console.say_once(f"{data} is judged by {CLIP} (--judge names another).")
    return judge


def required(named: str | None, data: str, what: str) -> Any:
    """`judge_for`; raises ValueError where there is none."""
    judge = judge_for(named, data)
    if judge is None:
        raise ValueError(f"{what} needs a CLIP that judges pictures of {data}; name one (--judge DIR|HUB_ID).")
    return judge

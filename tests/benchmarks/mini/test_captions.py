"""What the mini is trained on: no name in two splits, nothing that cannot be drawn, no two drawings alike."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from asdm.data.datasets import emoji
from benchmarks.mini import captions


@pytest.fixture(scope="module")
def splits() -> dict[str, emoji.Emoji]:
    return {split: captions.open_data(split, size=32) for split in emoji.SPLITS}


def test_names_are_many_and_in_one_split_each(splits):
    names = {split: set(data.names) for split, data in splits.items()}
    assert names["held_out"] == captions.HELD_OUT
    assert not names["train"] & names["held_out"]
    assert not names["others"] & (names["train"] | names["held_out"])
    assert len(names["train"]) >= 900
    assert len(names["held_out"]) >= 150
    assert all(data.styles == emoji.STYLES * (len(data) // 2) for data in splits.values())


def test_every_listed_name_exists():
    known = {entry["name"] for entry in emoji._entries()}
    for names in (captions.LETTERING, captions.TOO_ALIKE, captions.DRAWN_NEVERTHELESS, captions.THIRD_PERSONS):
        assert names <= known


def test_no_flags_families_or_lettering(splits):
    for split in ("train", "held_out"):
        data = splits[split]
        assert "Flags" not in data.categories
        assert not {"family", "keycap", "alphanum", "zodiac", "country-flag"} & set(data.subcategories)
        assert not set(data.names) & captions.LETTERING
        assert not [name for name in data.names if "button" in name or "flag" in name or "family" in name]


def test_no_two_drawings_of_a_style_are_alike(splits):
    both = splits["train"] + splits["held_out"]
    for offset in range(len(emoji.STYLES)):
        drawings = F.avg_pool2d(both.pixels[offset :: len(emoji.STYLES)].float() / 255, 2).flatten(1)
        distance = torch.pdist(drawings) / drawings.shape[1] ** 0.5  # root mean square
        assert distance.min() > 0.01

"""The emoji data set: what is in it, that captions never cross splits, and that it is the same every time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from asdm.data.datasets import Encoded, Example, Stream, _emoji_names, captions_of, emoji, fingerprint
from asdm.utils import registry

BY_A_TEACHER = {"prompts"}


@pytest.mark.parametrize("name", sorted({*registry.names("asdm.data.datasets")} - BY_A_TEACHER))
def test_every_data_set_gives_captioned_examples(name: str, sources: dict[str, str | None]) -> None:
    examples = registry.load("asdm.data.datasets", name).open_data("train", size=64, source=sources[name])
    again = registry.load("asdm.data.datasets", name).open_data("train", size=64, source=sources[name])
    assert fingerprint(examples) == fingerprint(again)
    first = next(examples.read(0, 0, {}))[0] if isinstance(examples, Stream) else examples[0]
    assert isinstance(first.caption, str)
    assert first.caption
    assert first.caption in captions_of(examples, 3)
    if isinstance(first, Encoded):
        assert first.mean.shape == first.std.shape == (4, 8, 8)
        assert first.states.shape == (16, 32)
        return
    assert isinstance(first, Example)
    assert first.image.shape == (3, 64, 64)
    assert -1 <= first.image.min() < first.image.max() <= 1


@pytest.fixture(scope="module")
def splits() -> dict[str, emoji.Emoji]:
    return {name: emoji.open_data(name, size=32) for name in emoji.SPLITS}


def test_every_caption_is_drawn_in_both_styles_side_by_side(splits):
    for data in splits.values():
        assert data.styles == emoji.STYLES * (len(data) // 2)
        assert data.names[::2] == data.names[1::2]


def test_splits_share_no_caption_and_hold_out_exactly_the_list(splits):
    names = {split: set(data.names) for split, data in splits.items()}
    assert names["held_out"] == _emoji_names.HELD_OUT
    assert not names["train"] & names["held_out"]
    assert not names["others"] & (names["train"] | names["held_out"])
    assert len(names["train"]) >= 900
    assert len(names["held_out"]) >= 150


def test_every_listed_emoji_exists():
    known = {entry["name"] for entry in emoji._entries()}
    lists = (_emoji_names.LETTERING, _emoji_names.TOO_ALIKE, _emoji_names.DRAWN_NEVERTHELESS)
    for names in (*lists, _emoji_names.THIRD_PERSONS):
        assert names <= known


def test_no_flags_families_or_lettering(splits):
    for split in ("train", "held_out"):
        data = splits[split]
        assert "Flags" not in data.categories
        assert not {"family", "keycap", "alphanum", "zodiac", "country-flag"} & set(data.subcategories)
        assert not set(data.names) & _emoji_names.LETTERING
        assert not [name for name in data.names if "button" in name or "flag" in name or "family" in name]


def test_no_two_drawings_of_a_style_are_alike(splits):
    both = splits["train"] + splits["held_out"]
    for offset in range(len(emoji.STYLES)):
        drawings = F.avg_pool2d(both.pixels[offset :: len(emoji.STYLES)].float() / 255, 2).flatten(1)
        distance = torch.pdist(drawings) / drawings.shape[1] ** 0.5  # root mean square
        assert distance.min() > 0.01


def test_no_two_captions_of_a_style_draw_the_same_picture(splits):
    for style in emoji.STYLES:
        drawn = [
            data.pixels[i].numpy().tobytes()
            for data in splits.values()
            for i in range(len(data))
            if data.styles[i] == style
        ]
        assert len(set(drawn)) == len(drawn)


def test_a_red_heart_is_red_and_its_background_white(splits):
    heart = splits["train"][splits["train"].captions.index("red heart, twemoji style")].image
    red, green, blue = heart[:, 16, 16]
    assert red > 0.5 > 0 > max(green, blue)
    assert (heart[:, -1, 0] == 1).all()


def test_drawings_are_cached_and_the_same_when_drawn_again(splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def forget():
        for function in (emoji._drawings, emoji._of_split):
            function.cache_clear()

    monkeypatch.setenv("ASDM_CACHE", str(tmp_path))
    forget()
    again = emoji.open_data("held_out", size=32)
    (stored,) = tmp_path.glob("emoji/*.safetensors")
    assert torch.equal(again.pixels, splits["held_out"].pixels)

    def nobody_draws(*_):
        raise AssertionError("the cache was not read")

    forget()
    monkeypatch.setattr(emoji, "_draw", nobody_draws)
    assert torch.equal(emoji.open_data("held_out", size=32).pixels, again.pixels)
    assert stored.exists()


def test_slices_and_sums_keep_pictures_and_captions_together(splits):
    both = splits["train"] + splits["held_out"]
    assert len(both) == len(splits["train"]) + len(splits["held_out"])
    last = both[len(both) - 1 : len(both)][0]
    assert last.caption == splits["held_out"].captions[-1]
    assert torch.equal(last.image, splits["held_out"].images()[-1])


def test_a_wrong_split_is_named_with_its_choices():
    with pytest.raises(ValueError, match="unknown split 'test'; choose from train, held_out, others"):
        emoji.open_data("test")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "emoji", None)
    with pytest.raises(ValueError, match=r"needs the package 'emoji'; pip install 'asdm-prof\[mini\]'"):
        list(emoji._entries())

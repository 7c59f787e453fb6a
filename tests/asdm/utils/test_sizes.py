"""Sizes of images: squares are one number, everywhere, and the rest is width and height."""

import re

import pytest

from asdm.utils import sizes


@pytest.mark.parametrize(
    ("given", "size", "sides", "shown"),
    [
        (512, 512, (512, 512), "512"),
        ("512", 512, (512, 512), "512"),
        ("512x768", (512, 768), (512, 768), "512x768"),
        ("768X512", (768, 512), (768, 512), "768x512"),
        ("64×96", (64, 96), (64, 96), "64x96"),
        ([512, 768], (512, 768), (512, 768), "512x768"),
        ("512x512", 512, (512, 512), "512"),
    ],
)
def test_a_size_is_read_and_shown(given, size, sides, shown):
    assert sizes.parse(given) == size
    assert sizes.sides(size) == sides
    assert sizes.shown(size) == shown
    assert sizes.parse(shown) == size


@pytest.mark.parametrize("given", ["", "x", "512x", "512x0", "-512", "512.5", "1x2x3", "big", [1, 2, 3], [], 0, 1.5])
def test_anything_else_is_refused(given):
    words = f"size must be pixels per side (512) or WIDTHxHEIGHT (512x768), got {given!r}."
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        sizes.parse(given)


def test_some_take_squares_alone():
    assert sizes.square(512, "asdm cache") == 512
    with pytest.raises(ValueError, match=r"^asdm cache takes square pictures alone, got 512x768\.$"):
        sizes.square((512, 768), "asdm cache")

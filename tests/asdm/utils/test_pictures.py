"""Picture files: what is opened, what is refused in one sentence, and that nothing hangs."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from asdm.utils import pictures

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"


def png(size: tuple[int, int] = (8, 6), **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, "red").save(stream, "PNG", **options)
    return stream.getvalue()


def avif() -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(stream, "AVIF")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (EPS, "is not an image file; choose one in JPEG, PNG, WEBP"),
        (b"mine", "is not an image file"),
        (png((64, 64))[:-40], "is truncated or damaged."),
        (b"II*\x00\x08\x00\x00\x00\x01\x00\x00\x01\x04\x00\xff\xff\xff\xff\x00\x00\x00\x00", "image.png"),
        (png()[:16] + (1 << 30).to_bytes(4, "big") * 2 + png()[24:], "image.png"),
        pytest.param(
            avif()[:-200] + bytes(200) if "AVIF" in pictures.known_formats() else b"",
            "image.png",
            marks=pytest.mark.skipif("AVIF" not in pictures.known_formats(), reason="this Pillow has no AVIF"),
        ),
    ],
    ids=["EPS", "text", "cut", "TIFF", "bomb", "AVIF"],
)
def test_what_is_no_picture_is_refused_by_name(content: bytes, words: str, tmp_path: Path) -> None:
    (file := tmp_path / "image.png").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        pictures.read_picture(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_picture_of_too_many_pixels_or_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file := tmp_path / "image.png").write_bytes(png())
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # of which twice as many are an error, and fewer a warning
        with pytest.raises(ValueError, match=r"image\.png has too many pixels"):
            pictures.read_picture(file)
    monkeypatch.setattr(pictures, "MOST_BYTES", 20)
    with pytest.raises(ValueError, match=r"image\.png has more than 0 MiB"):
        pictures.read_picture(file)


def test_a_pipe_and_a_missing_file_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for name, words in (("pipe.png", "is not an image file"), ("gone.png", "no such file or directory")):
        with pytest.raises(ValueError, match=words):
            pictures.read_picture(tmp_path / name)


def test_a_picture_is_upright_and_on_white(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    (tmp_path / "turned.png").write_bytes(png(exif=exif))
    assert pictures.read_picture(tmp_path / "turned.png").size == (6, 8)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (np.asarray(pictures.read_picture(tmp_path / "clear.png")) == 255).all()

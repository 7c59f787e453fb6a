"""Small real data sets of every kind: fixtures for all tests, and what makes a picture and a shard."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from asdm.data import cache
from asdm.data.settings import CacheSettings


def picture(number: int, size: tuple[int, int] = (20, 16)) -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").rotate(number).save(stream, "PNG")
    return stream.getvalue()


def shard(path: Path, numbers: range, broken: tuple[int, ...] = (), cut: bool = False) -> Path:
    """A LAION-style tar; pictures in `broken` are none, and with `cut` the file ends in the middle."""
    with tarfile.open(path, "w") as tar:
        for n in numbers:
            parts = {".png": b"no picture" if n in broken else picture(n), ".txt": f"number {n}".encode(),
                     ".json": b"{}"}  # fmt: skip
            for suffix, content in parts.items():
                member = tarfile.TarInfo(f"{n:09d}{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    if cut:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures with a metadata.jsonl."""
    root = tmp_path_factory.mktemp("photos")
    for n in range(12):
        (root / f"{n}.png").write_bytes(picture(n))
    rows = [json.dumps({"file_name": f"{n}.png", "text": f"number {n}"}) for n in range(12)]
    (root / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    for n in range(4):
        shard(root / f"{n:05d}.tar", range(10 * n, 10 * n + 10))
    return root


@pytest.fixture(scope="module")
def cached(photos: Path, tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("cached") / "latents"
    cache.cache_latents(f"folder:{photos}", str(tiny_pipeline), output, CacheSettings(dtype="fp32", per_shard=5))
    return output


@pytest.fixture(scope="module")
def sources(photos: Path, shards: Path, cached: Path) -> dict[str, str | None]:
    """Where each data set's files are."""
    found = {
        "emoji": None,
        "folder": str(photos),
        "webdataset": f"{shards}/{{00000..00003}}.tar",
        "latents": str(cached),
    }
    return found  # noqa: RET504

"""Two gloo processes against one, at the same batch: the same pictures, the same noise, the same losses."""

from __future__ import annotations

import io
import socket
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from asdm.data.datasets import emoji
from tests import children
from tests.asdm.distill.training import log_of

TERMS = ("loss", "denoising", "output", "features", "mid_block", "perceptual")
STEPS = 24  # of 4 pictures: into the second epoch of 64, in both stages


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four LAION-style shards of emoji."""
    folder, data = tmp_path_factory.mktemp("shards"), emoji.open_data("held_out", 64)
    for number in range(4):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for i in range(number, len(data), 4):
                stream = io.BytesIO()
                Image.fromarray(data.pixels[i].permute(1, 2, 0).numpy()).save(stream, "PNG")
                for suffix, content in ((".png", stream.getvalue()), (".txt", data.captions[i].encode())):
                    member = tarfile.TarInfo(f"{i:09d}{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return f"{folder}/{{00000..00003}}.tar"


def train(world: int, teacher: Path, output: Path, data: str, *more: Any) -> list[dict[str, Any]]:
    """The log of a run in `world` processes, as `accelerate launch` would start them."""
    command = ["distill", "a_sdm", "--teacher", teacher, "--data", data, "--split", "held_out", "--steps", STEPS,
               "--batch", 4, "--learning-rate", 1e-3, "--vgg", "mini", "--device", "cpu", "--threads", 1, "-o", output,
               *more]  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "ACCELERATE_USE_CPU": "true",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
        console = output.with_name(f"{output.name}-{rank}")
        processes.append((children.start(command, console, place if world > 1 else {}), console))
    for process, console in processes:
        assert children.ended(process) == 0, console.read_text()
    return log_of(output)


@pytest.mark.parametrize("source", ["emoji", "webdataset"])
def test_two_processes_are_one(tiny_pipeline: Path, tmp_path: Path, shards: str, source: str) -> None:
    data = "emoji" if source == "emoji" else f"webdataset:{shards}"
    one = train(1, tiny_pipeline, tmp_path / "one", data)
    two = train(2, tiny_pipeline, tmp_path / "two", data)
    assert len(one) == len(two) == STEPS
    for mine, yours in zip(one, two, strict=True):
        for term in TERMS:
            if term in mine:
                assert yours[term] == pytest.approx(mine[term], abs=1e-4, rel=1e-4), (mine["step"], term)

"""Two gloo processes against one, at the same batch: the same pictures, the same noise, the same losses."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from tests import children
from tests.asdm.distill.training import log_of
from tests.pictures import shard

TERMS = ("loss", "denoising", "output", "features", "mid_block", "perceptual")
STEPS = 8  # of 4 pictures: into the second epoch of 12, in both stages


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four LAION-style shards of three pictures."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(4):
        shard(folder / f"{number:05d}.tar", range(3 * number, 3 * number + 3))
    return f"{folder}/{{00000..00003}}.tar"


def train(world: int, teacher: Path, output: Path, data: str, *more: Any) -> list[dict[str, Any]]:
    """The log of a run in `world` processes, as `accelerate launch` would start them."""
    command = ["distill", "a_sdm", "--teacher", teacher, "--data", data, "--steps", STEPS,
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


@pytest.mark.parametrize("source", ["folder", "webdataset"])
def test_two_processes_are_one(tiny_pipeline: Path, tmp_path: Path, photos: Path, shards: str, source: str) -> None:
    data = f"{source}:{photos if source == 'folder' else shards}"
    one = train(1, tiny_pipeline, tmp_path / "one", data)
    two = train(2, tiny_pipeline, tmp_path / "two", data)
    assert len(one) == len(two) == STEPS
    for mine, yours in zip(one, two, strict=True):
        for term in TERMS:
            if term in mine:
                assert yours[term] == pytest.approx(mine[term], abs=1e-4, rel=1e-4), (mine["step"], term)

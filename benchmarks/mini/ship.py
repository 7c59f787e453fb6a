"""`python -m benchmarks.mini.ship FOLDER`: copy the trained parts and their logs into the package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from asdm.mini import PIPELINE
from asdm.utils import console
from asdm.utils.io import whole_folder

HERE = PIPELINE.parent
PARTS = ("weights", "clip", "vgg", "judge")
LIMIT_BYTES = 25_000_000
FROM_A_FOLDER = ("_name_or_path", "is_local", "local_files_only")  # what configs say about where they were loaded from


def ship(folder: Path, to: Path = HERE) -> int:
    """Copy every trained part and log; returns the bytes of the weights. Raises ValueError above LIMIT_BYTES."""
    parts = [part for part in PARTS if (folder / part).is_dir()]
    if not parts:
        raise ValueError(f"{folder} holds none of {', '.join(PARTS)}; train them with python -m benchmarks.mini PART.")
    size = sum(file.stat().st_size for part in parts for file in (folder / part).rglob("*.safetensors"))
    if size > LIMIT_BYTES:
        raise ValueError(f"the weights in {folder} take {size / 1e6:.1f} MB; at most {LIMIT_BYTES / 1e6:.0f} MB ship.")
    for part in parts:
        with whole_folder(to / part, force=True) as temporary:
            shutil.copytree(folder / part, temporary, dirs_exist_ok=True)
            for config in temporary.rglob("*config.json"):
                _loads_anywhere(config)
    for log in sorted(folder.glob("runs/*/log.jsonl")):
        (to / "logs").mkdir(exist_ok=True)
        shutil.copyfile(log, to / "logs" / f"{log.parent.name}.jsonl")
    return size


def _loads_anywhere(config: Path) -> None:
    """Remove what names the folder that it was loaded from, and ask transformers for fp32.

    transformers would otherwise load a text encoder in the fp16 of its file, and diffusers the UNet beside it in fp32.
    """
    values = json.loads(config.read_text())
    plain = {key: value for key, value in values.items() if key not in FROM_A_FOLDER}
    if "dtype" in plain:
        plain["dtype"] = "float32"
    if plain != values:
        config.write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n")


def main(folder: Annotated[Path, typer.Argument(help="Where the parts were trained.")] = Path("mini-training")) -> None:
    """Copy trained weights and logs into the package."""
    console.say(f"{ship(folder) / 1e6:.1f} MB of weights are in {HERE}.")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    console.run(app)

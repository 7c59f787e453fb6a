"""`python -m benchmarks.mini PART…`: train parts of the mini one after the other, each from its checkpoint.

python -m benchmarks.mini vae clip latents      # what the UNet needs: 15 minutes on two cores, 24 MB
OMP_NUM_THREADS=1 python -m benchmarks.mini unet --workers 2  # hours; stop it at any time, the same command resumes
python -m benchmarks.mini vgg judge
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from asdm.models.execution import check_device
from asdm.utils import console, registry
from asdm.utils.io import whole_folder
from benchmarks.mini import latents
from benchmarks.mini.training import train

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    parts: Annotated[list[str], typer.Argument(help="vae, clip, latents, unet, vgg, judge: any of them, in order.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for checkpoints, logs and trained parts.")
    ] = Path("mini-training"),
    pictures: Annotated[int | None, typer.Option(help="Pictures to train the UNet on in all.", min=1)] = None,
    stop_at: Annotated[int | None, typer.Option(help="Pictures after which to stop for now.", min=1)] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures a step of the UNet; default: 64.", min=1)] = None,
    workers: Annotated[
        int | None, typer.Option(help="Threads that share a batch of the UNet's; default: 1.", min=1)
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where the UNet is trained, such as cuda; default: cpu.")] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Compile the UNet: minutes at the start, then faster steps.")
    ] = False,
) -> None:
    """Train parts of the mini and write what users load."""
    options = {"batch": batch, "device": device, "compiled": compiled, "workers": workers}
    for name, value in ({"pictures": pictures, "stop-at": stop_at} | options).items():
        if value and parts != ["unet"]:
            raise ValueError(f"--{name} is for unet alone, not for {' '.join(parts)}.")
    check_device(device or "cpu")
    for part in parts:
        if part == "latents":
            with console.progress("Encoding", "pictures") as tell:
                latents.encode(output, tell)
            continue
        network = registry.load("benchmarks.mini.parts", part)
        if part != "unet" and (output / network.FOLDER).is_dir():
            console.say(f"{output / network.FOLDER} is there; delete it to train {part} again.")
            continue
        given: dict[str, Any] = {name: value for name, value in options.items() if value}
        task = network.training_task(pictures or network.PICTURES, output, **given)
        with console.progress("Training", "pictures") as tell:
            module = train(task, output / "runs" / part, tell, stop_at=stop_at)
        with whole_folder(output / network.FOLDER, force=True) as folder:
            network.ship(module, folder)
        console.say(f"Wrote {output / network.FOLDER}")


if __name__ == "__main__":
    console.run(app)

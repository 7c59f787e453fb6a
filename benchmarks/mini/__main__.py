"""`python -m benchmarks.mini PART`: train a part of the mini, from its checkpoint where there is one.

python -m benchmarks.mini vae        # then clip, unet; vgg and judge at any time
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asdm.utils import console, registry
from benchmarks.mini.training import train

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    part: Annotated[str, typer.Argument(help="vae, clip, unet, vgg or judge.")],
    folder: Annotated[Path, typer.Option(help="Folder for checkpoints and logs.")] = Path("mini-training"),
    steps: Annotated[int | None, typer.Option(help="Total; the learning rate decays over the second half.")] = None,
    stop_at: Annotated[int | None, typer.Option(help="Stop after this step; the same command continues.")] = None,
    start: Annotated[Path | None, typer.Option(help="A trained pipeline from which the UNet starts.")] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Compile the UNet: minutes at the start, then a third less a step.")
    ] = False,
) -> None:
    """Train a part of the mini and write what users load."""
    for option, value in (("--compiled", compiled), ("--start", start)):
        if value and part != "unet":
            raise ValueError(f"{option} is for unet, not for {part}.")
    if start and not (start / "unet").is_dir():
        raise ValueError(f"{start} has no folder unet; name a pipeline's folder, such as asdm/mini/weights.")
    network = registry.load("benchmarks.mini.parts", part)
    options = {"start": start, "compiled": compiled} if part == "unet" else {}
    task = network.training_task(steps or network.DEFAULT_STEPS, folder, **options)
    with console.progress("Training", "steps") as tell:
        module = train(task, folder / "runs" / part, tell, stop_at=stop_at)
    network.ship(module, folder if part != "clip" else folder / "clip")
    console.say(f"Wrote {folder}")


if __name__ == "__main__":
    console.run(app)

"""`python -m benchmarks.mini STAGE`: train a part of the mini, from its checkpoint where there is one.

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
    stage: Annotated[str, typer.Argument(help="vae, clip, unet, vgg or judge.")],
    folder: Annotated[Path, typer.Option(help="Where checkpoints and logs are kept.")] = Path("mini-training"),
    steps: Annotated[
        int | None, typer.Option(help="Steps in all; the learning rate falls over the second half.")
    ] = None,
    stop_at: Annotated[int | None, typer.Option(help="Stop after this step, to go on later.")] = None,
    start: Annotated[
        Path | None, typer.Option(help="A trained pipeline that the UNet goes on from, instead of from nothing.")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="torch.compile the UNet: minutes at the start, a third off every step.")
    ] = False,
) -> None:
    """Train one stage of the mini and write what users load of it."""
    if compiled and stage != "unet":
        raise ValueError(f"{stage} is small and not compiled; --compiled is for unet.")
    if start and stage != "unet":
        raise ValueError(f"{stage} starts from nothing; only unet goes on from a trained pipeline.")
    if start and not (start / "unet").is_dir():
        raise ValueError(f"{start} holds no trained UNet; name a pipeline's folder, such as asdm/mini/weights.")
    part = registry.load("benchmarks.mini.stages", stage)
    more = (part.Recipe(start=start, compiled=compiled),) if stage == "unet" else ()
    prepared = part.stage(steps or part.DEFAULT_STEPS, folder, *more)
    with console.progress("Training", "steps") as tell:
        module = train(prepared, folder / "runs" / stage, tell, stop_at=stop_at)
    part.ship(module, folder if stage != "clip" else folder / "clip")
    console.say(f"Wrote {folder}")


if __name__ == "__main__":
    console.run(app)

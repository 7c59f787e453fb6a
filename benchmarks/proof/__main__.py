"""`python -m benchmarks.proof -o reports/mini`: A-SDM against BK-SDM at equal latency and equal training.

The protocol, on the mini's real weights and the emoji:

1. Profile and measure damage, where the folder has none of these weights (as `benchmarks/damage.py` does).
2. Make every row's student from a plan: BK-SDM's rule and ours at one latency, BK-SDM-Base and ours at its latency, the
   paper's assembly; and the paper's without each of its parts.
3. Train each from each seed: the same number of pictures, the same optimizer and schedule. Judge what it draws of
   captions that were held out, from the same noise as the teacher, by a network that has trained nobody.
4. Time every plan in pairs with the teacher: `--latency`, a pass of its own, so that training can go on beside other
   work and the clock runs when the machine has nothing else to do.

Every student is kept in proof.json (`asdm.proof/1`) as soon as it is judged; checkpoints lie in `--folder`. The same
command again does what is missing, also in the middle of a training; given a second time meanwhile, it shares the
work. `--readme` puts the table into docs/results.md.

    python -m benchmarks.proof -o reports/mini --seeds 3
    python -m benchmarks.proof -o reports/mini --latency --readme
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import this_command
from asdm.utils import console, io
from asdm_prof.cli.progress import watching
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.renderers import Report, figures
from asdm_prof.sensitivity import study
from benchmarks.proof import evidence, run
from benchmarks.proof.figures import PROOF
from benchmarks.proof.records import Proof
from benchmarks.script import Readme, put_into_results
from benchmarks.script import run as run_script

DEFAULT = run.ProofSettings()


def main(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of proof.json, proof.md and figures/.")],
    folder: Annotated[
        Path | None, typer.Option(help="Where plans, checkpoints and students are kept; default: OUTPUT/proof-work.")
    ] = None,
    family: Annotated[str, typer.Option(help="A family with weights, or a diffusers folder.")] = DEFAULT.family,
    rows: Annotated[str, typer.Option(help="Rows by name, with commas between; default: all.")] = "",
    seeds: Annotated[int, typer.Option(help="Training seeds of every row.")] = 3,
    steps: Annotated[int, typer.Option(help="Training steps of every row, all stages together.")] = DEFAULT.steps,
    batch: Annotated[int, typer.Option(help="Pictures of a step.")] = DEFAULT.batch,
    learning_rate: Annotated[float, typer.Option(help="Of every row.")] = DEFAULT.learning_rate,
    dtype: Annotated[str, typer.Option(help="Of the training's autocast: fp32 or bf16.")] = DEFAULT.dtype,
    budget: Annotated[str, typer.Option(help="Latency that ours is planned for.")] = DEFAULT.budget,
    captions: Annotated[int | None, typer.Option(help="Held-out captions to draw; default: all.")] = None,
    drawing_steps: Annotated[int, typer.Option(help="Denoising steps of a picture.")] = DEFAULT.drawing_steps,
    prompts: Annotated[int, typer.Option(help="Pictures that damage is measured on.")] = 64,
    timesteps: Annotated[int, typer.Option(help="Noise levels of each.")] = 8,
    plans: Annotated[int, typer.Option(help="Random joint plans that damage is checked on.")] = 40,
    latency: Annotated[bool, typer.Option("--latency", help="Time the rows that are there, and nothing else.")] = False,
    pairs: Annotated[int, typer.Option(help="Timed pairs of every plan and the teacher.")] = 40,
    backend: Annotated[str, typer.Option(help="What runs the timed UNets.")] = "eager",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: what torch takes.")] = None,
    readme: Readme = False,
    force: Annotated[bool, typer.Option("--force", help="Throw away another experiment's proof.json.")] = False,
) -> None:
    """Train what is missing, or time what is there; then write, draw and print."""
    command, path = this_command("python -m benchmarks.proof"), output / "proof.json"
    work = folder or output / "proof-work"
    settings = run.ProofSettings(
        family=family,
        budget=budget,
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        dtype=dtype,
        captions=captions,
        drawing_steps=drawing_steps,
        threads=threads,
    )
    chosen = run.chosen_rows([name.strip() for name in rows.split(",") if name.strip()])
    timed = Proof.load(path) if latency else None
    io.make_folder(output)
    with watching("Profiling") as watch:
        timing = ProfileSettings(threads=threads, backend=backend)
        profile = study.load_or_profile(output / "profile.json", family, timing, watch=watch, command=command)
    if timed:
        with console.progress("Timing") as tell:
            found = run.time_rows(timed, settings, work, backend, pairs, tell, command)
        found.save(path, force=True)
    else:
        with console.progress("Measuring damage") as tell:
            asked = study.SensitivitySettings(threads=threads, prompts=prompts, timesteps=timesteps)
            measured = study.load_or_measure_damage(
                output / "damage.json", family, asked, plans, profile.weights_sha256, tell=tell, command=command
            )
        with console.progress("Proving") as tell:
            found = run.prove(
                chosen, range(seeds), settings, profile, measured, path, work, force, tell, command=command
            )
    text = evidence.markdown(found, str(path))
    io.write_whole(output / "proof.md", text, force=True)
    figures.render(Report(profile, extra={"proof": found}), output, PROOF)
    if readme:
        put_into_results("proof", f"\n{text}")
    print(text, end="")


if __name__ == "__main__":
    run_script(main)

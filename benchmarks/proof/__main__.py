"""A-SDM against BK-SDM at equal latency and equal training.

    python -m benchmarks.proof -o reports/mini/pilot --measured reports/mini/options --folder WORK --seeds 2 \\
        --rows ours_0.65,bk_sdm_base
    python -m benchmarks.proof -o reports/mini --measured reports/mini/options --folder WORK
    python -m benchmarks.proof -o reports/mini --measured reports/mini/options --folder WORK --latency

The protocol, on the mini's real weights and the emoji:

1. Plan on the profile and the damage in `--measured`; without it both are measured, if the output folder has none of
   these weights (as `benchmarks/damage.py` does).
2. Make every row's student from a plan: ours at three latencies, BK-SDM's rule at the smallest of them, BK-SDM-Base,
   the paper's every part, and the paper's without each of them or with another reading of it. Ours chooses and refits
   what its replaced units keep on calibration data, as `asdm distill-units` does.
3. Train each from each seed, with the same optimizer and schedule; an ablation, and the row that it is compared with,
   see half of the pictures. Judge what a student draws for held-out captions and for captions from training, from the
   same noise as the teacher, with a network that has trained none of them. The rows that decide are judged at four
   checkpoints, too.
4. Time every plan in pairs with the teacher: `--latency`, a separate pass, so that training can share the machine but
   timing has it alone.

A pilot of two rows says first how many pictures and seeds can show what is asked (`benchmarks/proof/power.py`); its
students are used again where the folder is the same.

Every student is saved in proof.json (`asdm.proof/1`) as soon as it is judged; checkpoints are in `--folder`. Repeat the
command to resume, also in the middle of a training; run it twice at once to share the work. `--readme` puts the table
into docs/results.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import from_settings, this_command
from asdm.utils import console, io
from asdm_prof.cli.progress import watching
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.records import Damage, Profile
from asdm_prof.renderers import Report, figures
from asdm_prof.sensitivity import study
from asdm_prof.sensitivity.settings import SensitivitySettings
from benchmarks import script
from benchmarks.proof import evidence, power
from benchmarks.proof.figures import PROOF
from benchmarks.proof.records import Proof
from benchmarks.proof.rows import ProofSettings, chosen_rows
from benchmarks.proof.run import prove, time_rows


@from_settings
def main(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of proof.json, proof.md and figures/.")],
    *,
    folder: Annotated[
        Path | None, typer.Option(help="Where plans, checkpoints and students are kept; default: OUTPUT/proof-work.")
    ] = None,
    settings: ProofSettings,
    measured: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the profile.json and damage.json to plan on; default: OUTPUT, measured if missing."
        ),
    ] = None,
    rows: Annotated[str, typer.Option(help="Names of rows, separated by commas; default: all.")] = "",
    seeds: Annotated[int, typer.Option(help="Training seeds per row.")] = 3,
    prompts: Annotated[int, typer.Option(help="Pictures that damage is measured on.")] = 64,
    timesteps: Annotated[int, typer.Option(help="Noise levels per picture.")] = 8,
    plans: Annotated[int, typer.Option(help="Random joint plans that damage is checked on.")] = 40,
    latency: Annotated[bool, typer.Option("--latency", help="Time the rows of proof.json, and nothing else.")] = False,
    pairs: Annotated[int, typer.Option(help="Timed pairs of every plan and the teacher.")] = 40,
    backend: Annotated[str, typer.Option(help="Runtime of the timed UNets.")] = "eager",
    readme: script.Readme = False,
    force: Annotated[bool, typer.Option("--force", help="Discard another experiment's proof.json.")] = False,
) -> None:
    """Train the students that are missing, or time those that exist; then write, draw and print the result."""
    command, path = this_command("python -m benchmarks.proof"), output / "proof.json"
    family, threads, work = settings.family, settings.threads, folder or output / "proof-work"
    chosen = chosen_rows(settings, [name.strip() for name in rows.split(",") if name.strip()])
    saved = Proof.load(path) if latency else None
    io.make_folder(output)
    if measured:
        profile = Profile.load(measured / "profile.json")
    else:
        with watching("Profiling") as watch:
            timing = ProfileSettings(threads=threads, backend=backend)
            profile = study.load_or_profile(output / "profile.json", family, timing, watch=watch, command=command)
    if saved:
        with console.progress("Timing") as tell:
            proof = time_rows(saved, settings, work, backend, pairs, tell, command)
        proof.save(path, force=True)
    else:
        if measured:
            damage = Damage.load(measured / "damage.json")
        else:
            with console.progress("Measuring damage") as tell:
                measuring = SensitivitySettings(threads=threads, prompts=prompts, timesteps=timesteps)
                damage = study.load_or_measure_damage(
                    output / "damage.json", family, measuring, plans, profile.weights_sha256, tell=tell, command=command
                )
        with console.progress("Proving") as tell:
            proof = prove(chosen, range(seeds), settings, profile, damage, path, work, force, tell, command)
    text = evidence.markdown(proof, str(path))
    if said := power.sentence(proof):
        text += f"\n{said}\n"
    io.write_whole(output / "proof.md", text, force=True)
    figures.render(Report(profile, extra={"proof": proof}), output, PROOF)
    if readme:
        script.put_into_results("proof", f"\n{text}")
    print(text, end="")


if __name__ == "__main__":
    script.run(main)

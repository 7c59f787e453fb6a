"""What a reader gets of the result files: a summary in Markdown, the report's page, and rows for the documents."""

from pathlib import Path

from asdm.plan.edits import PruningPlan
from asdm.records.bench import BenchResult
from asdm.utils import console, io
from asdm_prof.records import Comparison, Profile, Validation
from asdm_prof.renderers import Report, html
from asdm_prof.renderers._format import plain
from asdm_prof.renderers.html.content import Column, Paragraph, Section
from asdm_prof.renderers.html.sections import with_sections
from asdm_prof.renderers.html.tables import name_cells, table
from benchmarks import script
from benchmarks.gpu import run, targets
from benchmarks.gpu.context import GRAPH
from benchmarks.gpu.records import Files, StageFile
from benchmarks.gpu.stages import FILE_OF, STAGES

SUMMARY = "summary.md"
README_FIGURES = ("a_sdm,", "mean error", "img/s")
README = script.ROOT / "README.md"


def write(folder: Path, readme: bool = False) -> None:
    """Write summary.md and, where there is a profile, report.html; raises ValueError without result files."""
    files = Files(folder, FILE_OF)
    if not any(files.path(stage).exists() for stage in FILE_OF):
        raise ValueError(f"{folder} has no results of `python -m benchmarks.gpu`.")
    text = summary(files)
    written = [io.write_whole(folder / SUMMARY, text, force=True)]
    if report := report_of(files):
        written += html.render(report, folder, with_sections("trust", section))
    console.say(f"Wrote {' and '.join(map(str, written))}")
    if readme:
        into_documents(files)


def summary(files: Files) -> str:
    """The machine, every figure beside its target, and how each stage ended."""
    stage_files = [file for stage in FILE_OF if (file := files.load(stage))]
    facts = next((run.environment for file in stage_files for run in file.stages.values()), {})
    machine = [f"- {name}: {value}" for name, value in facts.items()]
    trial = any(run.smoke for file in stage_files for run in file.stages.values())
    note = "A trial run on small networks: its figures say nothing of SD 1.5.\n\n" if trial else ""
    return "\n".join([
        f"# {_card(stage_files)}\n", note + "## Figures and targets\n", _markdown(targets.rows(files)),
        "\n## Stages\n", _markdown(run.table(files, STAGES)), "\n## Machine\n", *machine, "",
    ])  # fmt: skip


def _card(stage_files: list[StageFile]) -> str:
    return next((file.card for file in stage_files if file.card != "?"), "?")


def _markdown(rows: list[dict[str, str]]) -> str:
    return console.markdown(rows) if rows else "None yet."


# ---------------------------------------------------------------------------------------------- page


def report_of(files: Files) -> Report | None:
    """The profile that plans are made for, with all that followed from it; None without one."""
    profiles = files.results("profile", Profile)
    if not profiles:
        return None
    profile = next((one for one in profiles.values() if one.backend == GRAPH), next(iter(profiles.values())))
    benches = [*files.results("bench", BenchResult).values(), *files.results("compiled", BenchResult).values()]
    return Report(
        profile,
        plan=next(iter(files.results("profile", PruningPlan).values()), None),
        benches=tuple(one for one in benches if one.teacher_config_sha256 == profile.config_sha256),
        validation=next(iter(files.results("validate", Validation).values()), None),
        comparison=next(iter(files.results("profile", Comparison).values()), None),
        sources={stage.name: str(files.path(stage.name)) for stage in STAGES if files.path(stage.name).exists()},
        extra={"gpu": targets.rows(files)},
    )


def section(report: Report) -> Section | None:
    """Every figure beside its target."""
    rows = report.extra.get("gpu")
    if not rows:
        return None
    missed = [row["figure"] for row in rows if row["reached"] == "no"]
    aimed = sum(row["reached"] != "" for row in rows)
    said = f"{aimed - len(missed)} of {aimed} targets were reached" + (
        f"; not: {', '.join(missed)}." if missed else "."
    )
    fields = [(Column(name, numeric=False), name_cells((row[name] for row in rows), 200)) for name in rows[0]]
    return Section("Figures and targets", [Paragraph([plain(said, 900)]), table("gpu", "Measured on the GPU.", fields)])


# ---------------------------------------------------------------------------------------------- documents


def into_documents(files: Files) -> None:
    """Put the card's figures between the marks of docs/results.md and of the README."""
    cards = [file for stage in FILE_OF if (file := files.load(stage))]
    if any(run.smoke for file in cards for run in file.stages.values()):
        raise ValueError(f"{files.folder} is a trial run; the documents take measurements alone.")
    rows = [
        {"figure": row["figure"], "target": row["target"], "measured": row["measured"]} for row in targets.rows(files)
    ]
    head = f"\nOn {_card(cards)} (`{files.folder}`):\n\n{console.markdown(rows)}\n"
    script.put_into_results("gpu", head)
    text = README.read_text(encoding="utf-8")
    io.write_whole(README, script.between_marks(text, "gpu", readme_rows(files, _card(cards))), force=True)
    console.say(f"Wrote {README}")


def readme_rows(files: Files, card: str) -> str:
    """The README's rows, without what stands before and after the marks in the first and the last one."""
    wanted = [row for row in targets.rows(files) if row["figure"].startswith(README_FIGURES)]
    return " |\n| ".join(f"{row['figure']} | {row['measured']} | {card}" for row in wanted)

"""Imports only go down: reads every import of both packages and keeps the house's floors."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = {
    "asdm": [
        {"utils"},
        {"records", "plan"},
        {"unet"},
        {"measure"},
        {"mini"},
        {"models"},
        {"schedule"},
        {"data"},
        {"evaluate"},
        {"distill"},
        {"cli", "__main__"},
    ],
    "asdm_prof": [
        {"records"},
        {"planner"},
        {"profiler"},
        {"sensitivity"},
        {"analysis"},
        {"search"},
        {"renderers"},
        {"cli", "api", "__main__"},
    ],
}
# Upward imports that are made at call time: a saved student's class is looked up by the name in its config.
LATE = {("asdm.models.loading", "asdm.models.student")}
SEAMS = (
    "asdm.unet.replacements",
    "asdm.measure.backends",
    "asdm.models.families",
    "asdm.data.datasets",
    "asdm.distill.losses",
    "asdm.evaluate.metrics",
    "asdm.schedule.presets",
    "asdm_prof.renderers",
)
NO_TORCH = [
    "asdm.records.build",
    "asdm.records.bench",
    "asdm.records.distill",
    "asdm.records.slim",
    "asdm.cli.slim.settings",
    "asdm.plan.legality",
    "asdm.plan.presets",
    "asdm.schedule.forecast",
    "asdm.schedule.legality",
    "asdm.schedule.presets",
    "asdm.schedule.schedule",
    "asdm.cli.guide",
    "asdm.cli",
    "asdm.data.settings",
    "asdm.distill.settings",
    "asdm.models.settings",
    "asdm.evaluate.settings",
    "asdm_prof",
    "asdm_prof.api",
    "asdm_prof.cli",
    "asdm_prof.records",
    "asdm_prof.profiler.settings",
    "asdm_prof.planner.settings",
    "asdm_prof.sensitivity.settings",
    "asdm_prof.search.settings",
    "asdm_prof.planner.plan",
    "asdm_prof.planner.choices",
    "asdm_prof.planner.frontier",
    "asdm_prof.planner.explain",
    "asdm_prof.sensitivity.additivity",
    "asdm_prof.analysis.tree",
    "asdm_prof.analysis.rank",
    "asdm_prof.analysis.diff",
    "asdm_prof.analysis.transfer",
    "asdm_prof.search.halving",
    "asdm_prof.search.study",
]


def modules() -> dict[str, Path]:
    """`asdm.models.families.sd15` → its file, for both packages."""
    found = {}
    for package in FLOORS:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> dict[str, frozenset[str]]:
    """module → our own modules that it imports, at its top or inside a function."""
    known = modules()
    return {name: frozenset(_imports_of(name, path, known)) for name, path in known.items()}


def _imports_of(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            for _ in range(node.level - 1):
                package = package.rpartition(".")[0]
            base = ".".join(filter(None, [package if node.level else "", node.module or ""]))
            deeper = {f"{base}.{alias.name}" for alias in node.names}
            found |= (deeper & known.keys()) or {base}
    return {
        module for module in found if module.partition(".")[0] in FLOORS and module not in (name, "asdm", "asdm_prof")
    }


def floor(module: str) -> int | None:
    """The number of a module's floor; the packages' own `__init__` stand outside the house."""
    package, _, rest = module.partition(".")
    step = rest.partition(".")[0]
    return next((n for n, steps in enumerate(FLOORS[package]) if step in steps), None)


def test_every_file_has_a_floor():
    homeless = [module for module in modules() if "." in module and floor(module) is None]
    assert not homeless, f"give these a floor in FLOORS, and in the design: {', '.join(homeless)}"


def test_no_floor_is_named_for_a_file_that_is_gone():
    steps = {f"{package}.{step}" for package, floors in FLOORS.items() for names in floors for step in names}
    assert not steps - modules().keys()


@pytest.mark.parametrize("module", [name for name in modules() if "." in name])
def test_imports_only_go_down(module):
    climbing = [
        f"{module} (floor {floor(module)}) imports {target} (floor {floor(target)})"
        for target in sorted(imports()[module])
        if target.partition(".")[0] == module.partition(".")[0]
        and (module, target) not in LATE
        and (floor(target) or 0) > (floor(module) or 0)
    ]
    assert not climbing, "; ".join(climbing)


def test_the_core_never_imports_the_profiler():
    wrong = [f"{name} imports {target}" for name, targets in imports().items() for target in targets
             if name.partition(".")[0] == "asdm" and target.partition(".")[0] == "asdm_prof"]  # fmt: skip
    assert not wrong, "; ".join(wrong)


def test_late_imports_are_still_needed_and_really_late():
    for module, target in LATE:
        assert target in imports()[module], f"{module} no longer imports {target}: take it off LATE"
        top = ast.parse(modules()[module].read_text()).body
        names = {node.module for node in top if isinstance(node, ast.ImportFrom)}
        assert target not in names, f"{module} imports {target} at its top, where it closes a circle"


def test_there_is_no_circle():
    graph = {name: {t for t in targets if (name, t) not in LATE} for name, targets in imports().items()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, "a circle of imports: " + " → ".join([*way[way.index(module) :], module])
        if module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_siblings_of_a_seam_do_not_know_the_commands():
    """A file of a seam folder may be loaded by itself: it imports neither a command line nor another seam's files."""
    for module, targets in imports().items():
        home = next((seam for seam in SEAMS if module.startswith(f"{seam}.")), None)
        for target in targets if home else ():
            other = next((seam for seam in SEAMS if target.startswith(f"{seam}.")), home)
            assert other == home, f"{module} imports {target} of another seam"
            assert ".cli" not in target, f"{module} imports {target}"


def test_the_reader_of_imports_sees_them():
    """A guard for this file: known imports of each form are found."""
    assert "asdm.plan.topology" in imports()["asdm.unet.blocks"]  # from asdm.plan.topology import …
    assert "asdm.utils.registry" in imports()["asdm.unet.surgery"]  # from asdm.utils import registry
    assert "asdm.unet.replacements.pass_through" in imports()["asdm.unet.surgery"]
    assert "asdm.models.build" in imports()["asdm.cli.build"]  # inside a function


def test_planning_needs_neither_torch_nor_diffusers():
    """In one process, which says after each module what has come along."""
    script = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n" + (
        "    print(name, *sorted({'torch', 'diffusers', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script, *NO_TORCH], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == NO_TORCH, f"the first of these that brings something along:\n{done.stdout}"

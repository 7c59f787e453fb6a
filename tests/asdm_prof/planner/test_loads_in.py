"""`--loads-in`: the rows hold exactly for the plans whose students a program loads, by brute force over choices."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from diffusers import UNet2DConditionModel

from asdm.models import loaders, single_file, student as students
from asdm.models.families import load_family
from asdm.models.loading import load_unet, meta_unet
from asdm.plan.edits import RemoveBlock
from asdm.plan.legality import resolve
from asdm.unet.replacements import shared_copy
from asdm.unet.surgery import apply_plan
from asdm_prof.planner import frontier, loads_in, milp, plan as planner
from asdm_prof.planner.choices import Choice
from asdm_prof.planner.problem import Problem
from tests.asdm.models import detectors
from tests.asdm_prof import synthetic

# Choices that meet the rules of the three programs, by how they begin; `.` ends what has to match whole.
PAIRS = tuple(f"remove layer 1 of down_blocks.{i} and remove layer 1 of up_blocks.{3 - i}." for i in range(4))
CHOSEN = {
    "layers and blocks": (*PAIRS, "remove mid_block.", "remove down_blocks.3 and"),
    "middle": ("remove mid_block", "remove down_blocks.3 and"),
    "units": (
        *(f"remove down_blocks.{i}.attentions.{j}." for i in range(3) for j in (0, 1)),
        "remove down_blocks.1.resnets", "replace down_blocks.0.attentions.0 with gri",
    ),
    "shallow": (
        *PAIRS[:3], "remove down_blocks.3 and", "remove down_blocks.0.attentions.0.", "remove up_blocks.3.attentions",
    ),
}  # fmt: skip


def problem_of(family: str, words: Sequence[str]) -> tuple[Problem, dict[str, Any]]:
    profile = synthetic.profile(family)
    whole = Problem.of(profile)
    choices = tuple(c for c in whole.choices if f"{c}.".startswith(tuple(words)))
    return Problem(profile, choices), load_family(family).unet


def is_legal(problem: Problem, taken: Sequence[Choice]) -> bool:
    touched = list(itertools.chain.from_iterable(choice.touches for choice in taken))
    if len(touched) != len(set(touched)):
        return False
    return all(sum(i in sets for i in map(problem.choices.index, taken)) <= 1 for sets in problem.layer_sets.values())


def accepted(problem: Problem, programs: Sequence[str], config: dict[str, Any]) -> list[tuple[int, ...]]:
    """Every legal set of choices whose student all programs load, one by one."""
    found = []
    for mask in itertools.product((False, True), repeat=len(problem.choices)):
        taken = [choice for choice, on in zip(problem.choices, mask, strict=True) if on]
        if is_legal(problem, taken):
            edits = itertools.chain.from_iterable(choice.edits for choice in taken)
            shape = loaders.structure_of(config, resolve(problem.profile.topology, edits))
            if all(loaders.loads_in(shape, program) for program in programs):
                found.append(tuple(i for i, on in enumerate(mask) if on))
    return found


def holds(rows: Sequence[Any], chosen: Sequence[int]) -> bool:
    sums = [sum(row.get(i, 0.0) for i in chosen) for row, _, _ in rows]
    return all(low - 1e-9 <= total <= high + 1e-9 for total, (_, low, high) in zip(sums, rows, strict=True))


@pytest.mark.parametrize("words", list(CHOSEN))
@pytest.mark.parametrize("program", loads_in.PROGRAMS)
def test_rows_hold_for_what_a_program_loads(program: str, words: str) -> None:
    problem, config = problem_of("sd15", CHOSEN[words])
    assert 3 <= len(problem.choices) <= 12
    rows = loads_in.rows(problem.profile, problem.choices, [program], config)
    expected = set(accepted(problem, [program], config))
    sets = itertools.chain.from_iterable(
        itertools.combinations(range(len(problem.choices)), k) for k in range(len(problem.choices) + 1)
    )
    legal = [s for s in sets if is_legal(problem, [problem.choices[i] for i in s])]
    assert {s for s in legal if holds(rows, s)} == expected


@pytest.mark.parametrize(("family", "program"), [("sd21_base", "sdcpp"), ("sdxl", "comfyui"), ("sdxl", "sdcpp")])
def test_rows_of_other_families(family: str, program: str) -> None:
    words = ("remove mid_block", "remove up_blocks.0.attentions.1.", "remove down_blocks.1.attentions.0.",
             "remove layer 1 of down_blocks.0 and remove layer 1", "remove down_blocks.3 and")  # fmt: skip
    problem, config = problem_of(family, words)
    rows = loads_in.rows(problem.profile, problem.choices, [program], config)
    expected = set(accepted(problem, [program], config))
    for k in range(len(problem.choices) + 1):
        for chosen in itertools.combinations(range(len(problem.choices)), k):
            if is_legal(problem, [problem.choices[i] for i in chosen]):
                assert holds(rows, chosen) == (chosen in expected)


@pytest.mark.parametrize("programs", [("comfyui",), ("comfyui", "diffusers"), ("sdcpp", "comfyui")])
def test_the_plan_is_the_best_that_the_programs_load(programs: tuple[str, ...]) -> None:
    """Against every set of choices under random damages, and infeasible exactly where none is left."""
    problem, config = problem_of("sd15", CHOSEN["shallow"])
    rng = np.random.default_rng(1)
    choices = tuple(replace(choice, damage=float(rng.uniform(0.1, 1))) for choice in problem.choices)
    ruled = replace(problem, choices=choices, rules=tuple(loads_in.rows(problem.profile, choices, programs, config)))
    sets = accepted(problem, programs, config)
    for share in (1.0, 0.95, 0.8, 0.6, 0.3):
        fitting = [s for s in sets if sum(choices[i].saving for i in s) >= 1 - share - 1e-12]
        row = (dict(enumerate(choice.saving for choice in choices)), 1 - share, np.inf)
        solution = milp.best(ruled, [row])
        assert (solution is None) == (not fitting)
        if solution:
            assert solution.damage == pytest.approx(min(sum(choices[i].damage for i in s) for s in fitting))


@pytest.mark.parametrize("program", loads_in.PROGRAMS)
def test_planned_students_load(program: str) -> None:
    """Up to ten plans along the frontier of SD 1.5 under the rules."""
    profile, config = synthetic.profile(), load_family("sd15").unet
    problem, _, _ = planner.prepare(profile, {"latency": "1.0"}, programs=(program,))
    plans = frontier.stepped_frontier(problem, {}, "latency", 10)
    assert len(plans) > 1
    for solution in plans:
        shape = loaders.structure_of(config, resolve(profile.topology, problem.edits(solution.chosen)))
        assert loaders.loads_in(shape, program)


@pytest.mark.parametrize("programs", [(), ("comfyui",), ("sdcpp", "comfyui")], ids="+".join)
def test_claims_of_planned_students_are_what_the_programs_do(programs: tuple[str, ...]) -> None:
    """Up to ten plans along the frontier, with and without rules, against the table of detectors."""
    family, profile = load_family("sd15"), synthetic.profile()
    teacher = meta_unet(family)
    stock = {768: detectors.shapes_of(teacher)}
    problem, _, _ = planner.prepare(profile, {"latency": "1.0"}, programs=programs)
    plans = frontier.stepped_frontier(problem, {}, "latency", 10)
    assert len(plans) >= (10 if not programs else 2)
    for solution in plans:
        resolved = resolve(profile.topology, problem.edits(solution.chosen))
        shape = loaders.structure_of(family.unet, resolved)
        if "cond_conv" in shape.replaced:  # experts have no name in these files
            assert not any(claim.verdict == "loads" for claim in loaders.claims(shape))
            continue
        apply_plan(student := shared_copy(teacher), resolved)
        for layout in ("comfyui", "sdcpp"):
            expected = detectors.verdicts(detectors.shapes_of(student, layout), "sd15", stock)
            if shape.replaced:
                expected = {name: verdict.replace("loads", "wrong") for name, verdict in expected.items()}
            claims = {claim.program: claim.verdict for claim in loaders.claims(shape, layout)}
            assert expected.items() <= claims.items(), (layout, [str(edit) for edit in resolved.plan.edits])
            for program in programs:
                if loaders.best_layout(program) == layout:
                    assert expected[loaders.TITLES[program]] == "loads"


def test_a_plan_remembers_what_loads_it_and_gives_its_reasons() -> None:
    profile = synthetic.profile()
    made = planner.make_plan(profile, "0.6", programs=("sdcpp",))
    assert made.loads_in == ("sdcpp",)
    assert RemoveBlock(block="down_blocks.3") in made.edits
    with pytest.raises(planner.Infeasible):
        planner.make_plan(profile, "0.3", programs=("sdcpp", "comfyui"))


def test_a_plan_for_diffusers_is_loaded_by_diffusers(tmp_path: Any) -> None:
    """The mini's, through a single file."""
    family = load_family("mini")
    made = planner.make_plan(synthetic.profile("mini"), "0.8", programs=("diffusers",))
    student, _ = students.build(load_unet(family, str(family.folder)), made)
    student.save_pretrained(tmp_path / "student")
    single_file.write(tmp_path / "x.safetensors", single_file.tensors_of(student, "comfyui"), {"format": "pt"})
    loaded = UNet2DConditionModel.from_single_file(tmp_path / "x.safetensors", config=str(tmp_path / "student"))
    assert made.edits
    assert loaded.state_dict().keys() == student.state_dict().keys()


def test_programs_that_load_none_are_named() -> None:
    with pytest.raises(ValueError, match=r"ComfyUI does not load mini and its students: it knows SD 1\.x"):
        planner.make_plan(synthetic.profile("mini"), "0.8", programs=("comfyui",))
    with pytest.raises(ValueError, match="unknown program 'a1111' for --loads-in; choose from comfyui, sdcpp"):
        loads_in.parse_programs("comfyui,a1111")

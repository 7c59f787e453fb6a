"""Successive halving as plain data: sizes and steps, due jobs, survivors, and that a dead worker loses nothing."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import Any

import pytest

from asdm.utils import locks
from asdm_prof.search import study
from asdm_prof.search.halving import FATE, MAX_DEATHS, Attempt, Halving, Job, ranked


def test_half_go_on_twice_as_long_within_the_steps_of_all() -> None:
    """8 + 4 + 2 candidates: 8·u, then 4 and 2 that add u and 2u, are 16 u."""
    halving = Halving(candidates=8, rungs=3, steps=1600)
    assert halving.sizes == (8, 4, 2)
    assert [halving.steps_until(rung) for rung in range(3)] == [100, 200, 400]
    assert halving.final_steps == 400
    spent = sum(size * halving.steps_of(Job(rung, 0)) for rung, size in enumerate(halving.sizes))
    assert spent == 8 * 100 + 4 * 100 + 2 * 200 == 1600
    assert Halving(5, 3, 100).sizes == (5, 3, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, 1, 10), "candidates must be at least 1, got 0"),
        ((4, 0, 10), "rungs must be at least 1, got 0"),
        ((3, 3, 100), r"3 candidates cannot be halved 2 times; choose --rungs 2 or fewer"),
        ((1, 2, 100), r"1 candidate cannot be halved 1 time; choose --rungs 1\.$"),
        ((8, 3, 15), r"steps must be at least 16 for 8 candidates in 3 rungs, got 15"),
    ],
)
def test_impossible_halvings_are_refused(settings: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Halving(*settings)


def test_a_rung_begins_when_all_of_the_one_before_has_ended() -> None:
    halving = Halving(4, 2, 600)
    assert halving.due([]) == [Job(0, candidate) for candidate in range(4)]
    attempts = [Attempt(Job(0, one), "done", loss=loss) for one, loss in ((0, 3.0), (1, 1.0), (2, 2.0))]
    assert halving.due([*attempts, Attempt(Job(0, 3), "open")]) == []
    assert halving.candidates_in(1, [*attempts, Attempt(Job(0, 3), "open")]) is None
    attempts.append(Attempt(Job(0, 3), "done", loss=0.5))
    assert halving.due(attempts) == [Job(1, 1), Job(1, 3)]
    assert not halving.finished(attempts)
    assert halving.finished([*attempts, Attempt(Job(1, 1), "done"), Attempt(Job(1, 3), "diverged")])


def test_candidates_within_the_budget_rank_before_better_ones_above_it() -> None:
    attempts = [
        Attempt(Job(0, 0), "done", over_budget=0.02, loss=0.1),
        Attempt(Job(0, 1), "done", over_budget=-0.1, loss=9.0),
    ]
    assert [one.job.candidate for one in ranked(0, attempts)] == [1, 0]


def test_a_job_whose_worker_died_or_left_is_due_again_until_it_has_killed_too_many() -> None:
    halving = Halving(2, 1, 2)
    for fate in ("died", "left"):
        assert Job(0, 0) in halving.due([Attempt(Job(0, 0), fate)])
    assert Job(0, 0) in halving.due([Attempt(Job(0, 0), "left")] * 9)
    assert Job(0, 0) not in halving.due([Attempt(Job(0, 0), "died")] * MAX_DEATHS)
    assert halving.finished([*[Attempt(Job(0, 0), "died")] * MAX_DEATHS, Attempt(Job(0, 1), "done")])


@pytest.mark.parametrize("seed", range(20))
def test_every_job_ends_exactly_once_however_workers_fare(seed: int) -> None:
    """Attempts end in any order and in any way; candidates that diverge make room for the next best."""
    chance, halving = random.Random(seed), Halving(8, 3, 1600)
    attempts: list[Attempt] = []
    while not halving.finished(attempts):
        due = halving.due(attempts)
        assert len(set(due)) == len(due)
        if due and chance.random() < 0.6:
            attempts.append(Attempt(chance.choice(due), "open"))
            continue
        under_way = [i for i, one in enumerate(attempts) if one.fate == "open"]
        if not under_way:
            continue
        fates: list[FATE] = ["done", "done", "done", "diverged", "left", "died"]
        i = chance.choice(under_way)
        attempts[i] = Attempt(attempts[i].job, chance.choice(fates), loss=chance.random())
    assert not halving.due(attempts)
    ended = [one.job for one in attempts if one.fate in ("done", "diverged")]
    assert len(set(ended)) == len(ended)
    assert {job.candidate for job in ended if job.rung == 0} | {
        job.candidate for job in {one.job for one in attempts if one.fate == "died"}
    } >= set(range(8)) - {one.job.candidate for one in attempts if one.fate == "left"}


@pytest.mark.parametrize("torn", [b"", b'{"op_code": 4, "wor', b"x" * 10_000])
def test_a_line_that_a_killed_worker_left_half_written_costs_nothing_else(tmp_path: Path, torn: bytes) -> None:
    import optuna

    def journal() -> Any:
        return study._journal(tmp_path / study.JOURNAL)

    found = optuna.create_study(study_name="s", storage=journal())
    found.tell(found.ask(), 1.0)
    with (tmp_path / study.JOURNAL).open("ab") as stream:
        stream.write(torn)
    for count in (2, 3):
        again = optuna.load_study(study_name="s", storage=journal())
        again.tell(again.ask(), 2.0)
        assert len(optuna.load_study(study_name="s", storage=journal()).trials) == count


def test_where_there_are_no_locks_the_settings_that_help_are_named(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*_: Any, **__: Any) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "lock", refuse)
    helps = r"locks cannot be locked \(no locks available\); choose an --output on another disk, or .* --storage\.$"
    with pytest.raises(ValueError, match=helps):
        study.FileLocks(tmp_path / "locks").take("decide")

"""Verdicts fall only where a rank or a plan could turn; fresh processes are told from each other."""

from __future__ import annotations

import json
import mmap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asdm.measure import machine
from asdm.measure.statistics import estimate, latency
from asdm.records.measurement import HostUse
from asdm_prof.profiler import checks, repeat
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.records import PartRecord, Profile
from tests.asdm_prof import synthetic
from tests.commands import Result, refused

LEADER, LATER = "up_blocks.3.attentions.0", "up_blocks.3.resnets.0"


def scaled(profile: Profile, factors: dict[str, float]) -> Profile:
    """The same profile with some units' times multiplied."""

    def change(unit: PartRecord) -> PartRecord:
        samples = [factors.get(unit.fqn, 1.0) * s for s in unit.latency_s.samples]
        share = estimate(np.asarray(samples) / np.asarray(profile.whole.latency_s.samples))
        return unit.model_copy(update={"latency_s": latency(samples), "share": share})

    return profile.model_copy(update={"units": tuple(map(change, profile.units))})


def line(profile: Profile, check: str, host: HostUse | None = None) -> Any:
    seconds = profile.whole.latency_s.samples
    lines = checks.box(profile.whole, list(profile.parts), seconds, seconds, None, {}, host=host)
    return next(one for one in lines if one.check == check)


# ---------------------------------------------------------------------------------------------- one process


def test_twins_that_agree_pass_and_say_how_far_they_are_apart() -> None:
    found = line(synthetic.profile(), "identical units take the same time")
    assert found.passed
    assert "apart" in found.value


def test_twins_that_disagree_fail_where_the_rank_could_turn() -> None:
    """One of two identical ResNets takes half as long again: an error that size turns many neighbours."""
    found = line(scaled(synthetic.profile(), {"mid_block.resnets.0": 1.5}), "identical units take the same time")
    assert not found.passed
    assert "could turn" in found.value
    assert found.remedy


def test_twins_that_disagree_pass_where_nothing_could_turn() -> None:
    """Only two twins, and one unit a hundred times as redundant: no order hangs on their 50 %."""
    profile = scaled(synthetic.profile(), {"mid_block.resnets.0": 1.5})
    keep = {part.fqn: part for part in profile.units}
    lonely = [keep["mid_block.resnets.0"], keep["mid_block.resnets.1"], keep[LEADER]]
    even = [p.model_copy(update={"share": p.share.model_copy(update={"low": 0.0, "high": 1.0})}) for p in lonely[:2]]
    found = checks._twins([*even, lonely[2]])
    assert found.passed
    assert "could turn" not in found.value


def test_pairs_told_apart_do_not_overlap() -> None:
    profile = synthetic.profile()
    pairs = {(a.fqn, b.fqn) for a, b in checks.told_apart(profile.units)}
    assert (LEADER, LATER) in pairs
    assert not pairs & {(b, a) for a, b in pairs}
    assert checks.could_turn(profile.units, 0.0) == 0
    assert checks.could_turn(profile.units, 0.999) == len(pairs)


def test_others_at_work_fail_only_where_the_halves_turn() -> None:
    busy, quiet = HostUse(others_cores=64.0, steal_cores=8.0), HostUse(others_cores=0.0, steal_cores=0.0)
    calm = synthetic.profile()
    leader = calm.part(LEADER)
    steady = [leader.latency_s.median] * len(leader.latency_s.samples)
    turning = [s * (0.01 if i % 2 else 1.0) for i, s in enumerate(steady)]  # every other run ranks it last
    share = leader.share
    moved = leader.model_copy(update={"latency_s": latency(turning), "share": share})
    shaken = calm.model_copy(update={"units": tuple(moved if u.fqn == LEADER else u for u in calm.units)})
    assert line(calm, "the machine was ours alone", quiet).passed
    assert line(shaken, "the machine was ours alone", quiet).passed
    found = line(shaken, "the machine was ours alone", busy)
    assert not found.passed
    assert "64.00 of" in found.value
    assert "turn between its halves" in found.value


def test_the_hosts_use_is_what_is_left_of_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 10 s the cores worked for 15 s, 5 of them for us (one of these in the kernel), and 2 s were stolen."""
    readings = iter([(100.0, 1000.0, 50.0, 3.0, 7.0), (110.0, 1015.0, 55.0, 4.0, 9.0)])
    faults = iter([1000, 51000])
    monkeypatch.setattr(machine, "_cpu_seconds", lambda: next(readings))
    monkeypatch.setattr(machine, "_page_faults", lambda: next(faults))
    used = machine.HostWatch().read()
    assert used == HostUse(others_cores=1.0, steal_cores=0.2, kernel_share=0.2, page_faults_per_s=5000.0)


def test_fetching_memory_anew_shows_as_page_faults() -> None:
    """64 MiB that were not there before are 16,384 pages, or 32 large ones; the kernel gives them."""
    watch = machine.HostWatch()
    fresh = mmap.mmap(-1, 64 << 20)
    fresh.write(b"x" * (64 << 20))
    fresh.close()
    faults = watch.read().page_faults_per_s
    assert faults is not None
    assert faults > 0


def test_our_own_work_is_not_taken_for_others() -> None:
    """0.3 s of work here: this process's clock moves by most of it, and the machine's by no less."""
    before = machine._cpu_seconds()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        sum(range(1000))
    wall, busy, own, kernel, steal = (now - then for now, then in zip(machine._cpu_seconds(), before, strict=True))
    assert wall > 0
    assert own >= 0.25
    assert busy >= own - 0.05  # the kernel counts in hundredths
    assert steal >= 0
    assert 0 <= kernel <= own


# ---------------------------------------------------------------------------------------------- several processes


def test_processes_that_differ_by_noise_agree() -> None:
    found = repeat.agreement([synthetic.profile(seed=seed) for seed in range(3)])
    assert found.passed, found.value
    assert "between 3 processes" in found.value


def test_processes_that_turn_a_rank_fail_and_say_so() -> None:
    a = synthetic.profile()
    b = scaled(a, {LEADER: 0.2, LATER: 5.0})
    found = repeat.agreement([a, b])
    assert not found.passed
    assert "pairs of the rank turn" in found.value
    assert found.remedy


def test_a_plan_that_misses_its_budget_in_another_process_fails() -> None:
    """Where all Transformers of the shallow blocks take half as long, removing them saves too little."""
    a = synthetic.profile()
    shallow = [u.fqn for u in a.units if u.kind == "transformer" and u.block in ("down_blocks.0", "up_blocks.3")]
    found = repeat.agreement([a, scaled(a, dict.fromkeys(shallow, 0.5))])
    assert not found.passed
    assert "a plan for 0.8 of one takes" in found.value


def test_profile_in_fresh_processes_as_typed(run: Any, tiny_folder: Path, tmp_path: Path) -> None:
    """The fake runtime has the same noise in every process: they agree to the last digit."""
    found: Result = run("asdm-prof", "profile", tiny_folder, "--backend", "fake", "--processes", "2", "-o", "p.json")
    assert found.code == 0, found.err
    data = json.loads((tmp_path / "p.json").read_text())
    assert len(data["processes"]) == 2
    assert data["processes"][0]["shares"] == data["processes"][1]["shares"]
    last = data["trust"][-1]
    assert last["check"] == "fresh processes agree"
    assert last["passed"]
    assert "Spearman 1.000 between 2 processes" in last["value"]
    assert Profile.load(tmp_path / "p.json").sha256()
    refused(run("asdm-prof", "profile", "sd15", "--processes", "0"), "processes must be at least 1, got 0.")


def test_older_profiles_keep_their_hash() -> None:
    """Plans and benchmarks name a profile by its hash: new fields do not change those of files without them."""
    folder = Path(__file__).parents[3] / "reports" / "sd15"
    plan = json.loads((folder / "plan.json").read_text())
    assert Profile.load(folder / "profile.json").sha256() == plan["profile_sha256"]


def test_another_process_measures_what_was_asked_for() -> None:
    words = repeat._words(ProfileSettings(options="kv_downsample", time_components=True, size=(512, 768)))
    assert words[words.index("--options") + 1] == "kv_downsample"
    assert words[words.index("--size") + 1] == "512x768"
    assert "--components" in words


def test_a_plan_that_another_process_has_no_times_for_is_left_out() -> None:
    a, b = (synthetic.profile(seed=seed) for seed in range(2))
    assert repeat.agreement([a, b.model_copy(update={"options": ()})]).check == "fresh processes agree"

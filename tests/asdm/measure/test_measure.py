"""Time by a clock that the test moves: repeats, order, pairing and intervals to the last digit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from asdm.measure import clocks, machine as host, statistics
from asdm.measure.backends import eager, fake
from asdm.measure.clocks import FakeClock
from asdm.measure.repeats import interleave, warm_up
from asdm.measure.statistics import estimate, paired_ratio
from asdm.models.components import Component, time_calls
from asdm.unet import blocks, flops
from tests.tiny import make_unet, unet_args


class Machine:
    """Calls that take as long as told; remembers the order in which they ran."""

    def __init__(self, **seconds) -> None:
        self.clock, self.order = FakeClock(), []
        self.calls = {name: self._call(name, s if callable(s) else lambda s=s: s) for name, s in seconds.items()}

    def _call(self, name, seconds):
        def work():
            self.order.append(name)
            self.clock.advance(seconds())

        return lambda: clocks.timed(work, self.clock)


# ---------------------------------------------------------------------------------------------- warm-up


@pytest.mark.parametrize(
    ("times", "runs"),
    [
        ([1.0, 1.0, 1.0, 9.0], 3),  # steady from the start: three are enough
        ([9.0, 3.0, 1.0, 1.02, 1.04, 1.0], 5),
        ([1.0, 1.06, 1.0, 1.06, 1.0, 1.0, 1.0], 7),  # 6 % apart is not within 5 %
        ([1.0, 2.0] * 20, 20),  # never steady
    ],
)
def test_warm_up_ends_when_three_runs_agree(times, runs):
    left = iter(times)
    assert warm_up(lambda: next(left)) == times[:runs]


def test_warm_up_may_be_told_how_often():
    assert warm_up(lambda: 1.0, at_least=6) == [1.0] * 6
    left = iter([1.0, 2.0] * 20)
    assert warm_up(lambda: next(left), at_most=4) == [1.0, 2.0, 1.0, 2.0]
    left = iter([1.0, 1.1, 1.2, 1.0])
    assert len(warm_up(lambda: next(left), tolerance=0.2)) == 3
    left = iter([2.0, 1.0, 1.0, 1.0, 1.0])
    assert warm_up(lambda: next(left), at_least=2) == [2.0, 1.0, 1.0, 1.0]


def test_warm_up_gives_up_when_its_budget_is_spent():
    left = iter([1.0, 2.0] * 20)
    assert warm_up(lambda: next(left), budget_s=5.0) == [1.0, 2.0, 1.0, 2.0]


# ---------------------------------------------------------------------------------------------- interleave


def test_interleave_runs_in_the_order_of_the_pattern():
    machine = Machine(a=2.0, b=1.0)
    samples = interleave(machine.calls, "abba", machine.clock, min_rounds=3)
    assert "".join(machine.order) == "abba" * 3
    assert samples == {"a": [2.0] * 6, "b": [1.0] * 6}


def test_a_machine_that_slows_down_steadily_is_fair_to_both():
    machine = Machine(a=lambda: float(len(machine.order)), b=lambda: float(len(machine.order)))
    samples = interleave(machine.calls, "abba", machine.clock, min_rounds=2)
    assert samples == {"a": [1.0, 4.0, 5.0, 8.0], "b": [2.0, 3.0, 6.0, 7.0]}
    assert sum(samples["a"]) == sum(samples["b"])


@pytest.mark.parametrize(
    ("budget_s", "rounds"),
    [
        (0.0, 2),  # two rounds are always run
        (17.9, 2),
        (18.0, 3),  # a round takes 2 + 1 + 1 + 2 seconds
        (20.0, 3),
        (24.0, 4),
        (1000.0, 5),  # enough
    ],
)
def test_interleave_ends_before_the_round_that_would_pass_the_budget(budget_s, rounds):
    machine = Machine(a=2.0, b=1.0)
    samples = interleave(machine.calls, "abba", machine.clock, min_rounds=5, budget_s=budget_s)
    assert {name: len(taken) for name, taken in samples.items()} == {"a": 2 * rounds, "b": 2 * rounds}
    assert machine.clock.now == 6.0 * rounds


def test_without_a_budget_every_round_is_run_however_long():
    machine = Machine(a=1000.0)
    assert len(interleave(machine.calls, "aa", machine.clock, min_rounds=6, max_rounds=6)["a"]) == 12


def test_interleave_goes_on_until_there_is_enough():
    machine = Machine(a=1.0)
    samples = interleave(machine.calls, "a", machine.clock, min_rounds=3, enough=lambda found: len(found["a"]) >= 7)
    assert len(samples["a"]) == 7
    samples = interleave(machine.calls, "a", machine.clock, min_rounds=3, max_rounds=9, enough=lambda _: False)
    assert len(samples["a"]) == 9


def test_interleave_tells_how_much_is_left():
    told = []
    machine = Machine(a=2.0, b=1.0)
    interleave(machine.calls, "ab", machine.clock, min_rounds=2, progress=lambda ran, left: told.append((ran, left)))
    # mean seconds of a call so far × calls still to come of two rounds of two
    assert told[:3] == [(1, 2.0 / 1 * 3), (2, 3.0 / 2 * 2), (3, pytest.approx(5.0 / 3 * 1))]
    assert [ran for ran, _ in told] == [1, 2, 3, 4]


def test_the_time_left_counts_down_to_the_end_of_the_budget():
    """Calls of uneven length, an interval that is never reached: no jump up, and no restart after the least rounds."""
    rng = np.random.default_rng(0)
    machine = Machine(a=lambda: rng.uniform(1.0, 9.0), b=lambda: rng.uniform(0.5, 4.0))
    ends = []

    def progress(ran, left):
        ends.append((machine.clock.now, left))

    interleave(
        machine.calls, "abba", machine.clock, min_rounds=3, budget_s=200.0, enough=lambda _: False, progress=progress
    )
    left = [rest for _, rest in ends]
    assert len(left) > 5 * 4, "several rounds beyond the least"
    assert all(later < earlier for earlier, later in pairwise(left))
    assert [now + rest for now, rest in ends] == pytest.approx([200.0] * len(ends))
    assert 0 <= left[-1] < 200.0 / (len(left) / 4), "what is left is less than a round"


def test_the_time_left_ends_with_the_last_round_where_that_comes_before_the_budget():
    machine, left = Machine(a=2.0), []
    interleave(
        machine.calls, "a", machine.clock, max_rounds=6, enough=lambda _: False, progress=lambda _, s: left.append(s)
    )
    assert left == [10.0, 8.0, 6.0, 4.0, 2.0, 0.0]


def test_the_time_left_counts_the_two_rounds_that_are_run_without_a_budget():
    machine, left = Machine(a=2.0, b=1.0), []
    interleave(machine.calls, "ab", machine.clock, budget_s=0.0, progress=lambda _, seconds: left.append(seconds))
    assert left == pytest.approx([6.0, 3.0, 5.0 / 3, 0.0])


# ---------------------------------------------------------------------------------------------- intervals


def test_an_estimate_is_the_median_and_the_same_every_time():
    samples = [3.0, 1.0, 2.0, 10.0, 2.5]
    assert estimate(samples) == estimate(samples)
    assert estimate(samples).median == 2.5
    assert 1.0 <= estimate(samples).low <= 2.5 <= estimate(samples).high <= 10.0


def test_what_never_varies_has_no_width():
    found = estimate([0.25] * 7)
    assert (found.low, found.median, found.high) == (0.25, 0.25, 0.25)
    assert statistics.relative_half_width([0.25] * 7) == 0.0


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="no samples"):
        estimate([])


def test_the_interval_holds_the_true_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    runs = [estimate(1.0 + rng.exponential(size=25)) for _ in range(300)]
    truth = 1.0 + np.log(2)
    held = sum(run.low <= truth <= run.high for run in runs) / len(runs)
    assert 0.91 <= held <= 0.99  # 95 %, with the spread of 300 throws and of 25 samples


def test_more_samples_make_a_narrower_interval():
    rng = np.random.default_rng(1)
    few, many = (statistics.relative_half_width(rng.normal(10.0, 1.0, size=n)) for n in (10, 1000))
    assert many < few / 3


def test_a_latency_keeps_every_sample_in_order():
    found = statistics.latency([3.0, 1.0, 2.0])
    assert (found.samples, found.median) == ((3.0, 1.0, 2.0), 2.0)


def test_paired_ratio_does_not_see_what_hits_both():
    drift = [1.0, 1.1, 3.0, 0.9, 7.0, 1.3]
    found = paired_ratio([0.75 * s for s in drift], drift)
    assert (found.low, found.median, found.high) == pytest.approx((0.75, 0.75, 0.75))
    apart = paired_ratio([0.75 * s for s in reversed(drift)], drift)
    assert apart.high - apart.low > 0.5  # the same times, wrongly paired


def test_a_statistic_other_than_the_median():
    assert estimate([1.0, 2.0, 9.0], np.mean).median == 4.0


def test_spearman_looks_at_ranks_alone():
    assert statistics.spearman([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1.0)
    assert statistics.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)


# ---------------------------------------------------------------------------------------------- machine


def test_quiet_torch_gives_back_the_threads_and_records_them():
    before = torch.get_num_threads()
    with host.quiet_torch(before + 1) as threads:
        assert (threads, torch.get_num_threads(), torch.is_inference_mode_enabled()) == (before + 1, before + 1, True)
    with pytest.raises(KeyError), host.quiet_torch(before + 1):
        raise KeyError
    assert (torch.get_num_threads(), torch.is_inference_mode_enabled()) == (before, False)
    with host.quiet_torch(None) as threads:
        assert threads == before


def test_memory_is_asked_for_before_it_is_taken(monkeypatch):
    monkeypatch.setattr(host, "free_memory_bytes", lambda device: 3 * 2**30)
    host.require_memory(3 * 2**30, "cpu", "profiling")
    with pytest.raises(ValueError, match=r"^profiling needs about 8\.5 GiB on cpu and 3\.0 GiB are free; .*--batch"):
        host.require_memory(17 * 2**29, "cpu", "profiling")


def test_there_is_some_memory_here_and_not_an_exbibyte():
    assert 0 < host.free_memory_bytes("cpu") < 2**60
    with pytest.raises(ValueError, match="GiB are free"):
        host.require_memory(2**60, "cpu", "this test")


def test_a_cpu_is_timed_by_the_host_clock():
    assert type(clocks.clock_for("cpu")) is clocks.HostClock
    clock = clocks.HostClock()
    assert clocks.timed(lambda: None, clock) >= 0.0


def test_the_environment_says_what_decides_a_latency():
    facts = host.environment("cpu", threads=2)
    assert {"cpu", "cores", "threads", "torch", "diffusers", "python", "device"} <= set(facts)
    assert torch.__version__.startswith(facts["torch"])
    assert all(isinstance(value, str) and value for value in facts.values())


def test_the_environment_says_what_the_allocator_was_told(monkeypatch):
    for name in (*host.KEEP_MEMORY, "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    assert "malloc" not in host.environment("cpu", threads=1)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "4294967296")
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2:/opt/other.so")
    told = "MALLOC_TRIM_THRESHOLD_=4294967296 LD_PRELOAD=libjemalloc.so.2 other.so"
    assert host.environment("cpu", threads=1)["malloc"] == told


# ---------------------------------------------------------------------------------------------- components


@pytest.mark.parametrize(
    ("seconds", "budget_s", "kept"),
    [
        (1.0, 45.0, 10 - 1),  # ten calls; the first warmed up
        (10.0, 45.0, 4 - 1),  # a fifth call would end after 45 s
        (40.0, 45.0, 2),  # two at least, and then none to spare for warming up
    ],
)
def test_a_component_is_timed_within_its_budget(seconds, budget_s, kept):
    class Slow(nn.Linear):
        def forward(self, x):
            clock.advance(seconds)
            return super().forward(x)

    clock = FakeClock()
    part = Component("slow", Slow(2, 2, device="meta"), lambda device, dtype: ((torch.ones(1, 2),), {}), calls=1)
    assert time_calls(part, "cpu", "fp32", 0, clock, budget_s) == [seconds] * kept
    assert clock.now <= max(budget_s, 2 * seconds)


# ---------------------------------------------------------------------------------------------- backends


def slow(module: nn.Module, clock: FakeClock, seconds: float) -> None:
    """The module's forward takes `seconds` longer."""
    forward = module.forward

    def later(*args, **kwargs):
        clock.advance(seconds)
        return forward(*args, **kwargs)

    module.forward = later


@pytest.mark.usefixtures("nothing_left_hooked")
def test_eager_times_every_part_inside_the_real_forward(tiny_unet):
    clock, parts = FakeClock(), list(blocks.iter_parts(tiny_unet))
    for i, part in enumerate(parts):
        slow(part.modules[0], clock, float(i + 1))
    slow(tiny_unet, clock, 1000.0)  # what runs outside every part
    session = eager.open_session(tiny_unet, unet_args(), parts, clock)
    with torch.inference_mode():
        whole, times = session.run_parts()
        assert session.run() == whole
    assert times == {part.fqn: float(i + 1) for i, part in enumerate(parts)}
    assert whole == sum(times.values()) + 1000.0


def test_fake_times_are_macs_at_a_fixed_rate():
    unet = make_unet()
    parts = list(blocks.iter_parts(unet))
    macs = flops.count(unet, (), unet_args(), parts).by_part
    session = fake.open_session(unet.to("meta"), unet_args(), parts, FakeClock())
    assert session.times == {fqn: fake.SECONDS_PER_PART + row.macs * fake.SECONDS_PER_MAC for fqn, row in macs.items()}
    whole, times = session.run_parts()
    assert set(times) == {part.fqn for part in parts}
    assert whole == pytest.approx(sum(session.times.values()), rel=0.05)


@pytest.mark.parametrize(
    ("files", "room"),
    [
        ({"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 400\ninactive_file 250"}, [550]),
        ({"memory.max": "max", "memory.current": "700", "memory.stat": ""}, []),
        ({"memory/memory.limit_in_bytes": "1000", "memory/memory.usage_in_bytes": "900",
          "memory/memory.stat": "cache 3\ntotal_inactive_file 50"}, [150]),
        ({}, []),
    ],
)  # fmt: skip
def test_what_a_container_leaves_counts_files_kept_in_memory_as_free(tmp_path, monkeypatch, files, room):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    assert host._container_room() == room

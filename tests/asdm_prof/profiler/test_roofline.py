"""What bounds a unit, in numbers one can check by hand, and bytes that are counted on the meta device."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from asdm.measure.backends import eager
from asdm.measure.clocks import HostClock
from asdm.records.measurement import Estimate, HostUse
from asdm.unet import flops
from asdm.unet.blocks import Part, iter_parts
from asdm_prof.profiler import roofline
from asdm_prof.records import Peaks
from asdm_prof.renderers import Report, console, html
from asdm_prof.renderers.csv import units_frame
from tests.asdm_prof import synthetic
from tests.tiny import make_unet, unet_args

PEAKS = Peaks(gemm_flops_per_s=2e11, conv_flops_per_s=1e11, bytes_per_s=1e10, seconds_per_call=1e-5)


@pytest.mark.parametrize(
    ("macs", "moved_bytes", "calls", "bound", "attained"),
    [
        (10**10, 10**8, 30, "compute", 0.5),  # 2e10 / 2e11 = 100 ms of 200
        (10**8, 10**9, 30, "memory", 0.5),  # 1e9 / 1e10 = 100 ms
        (10**8, 10**7, 1000, "overhead", 0.005),  # 1 ms of memory and 10 ms of calls, of 200
    ],
)
def test_the_longest_of_three_bounds_it(macs: int, moved_bytes: int, calls: int, bound: str, attained: float) -> None:
    placed = roofline.place(macs, moved_bytes, calls, 0.2, PEAKS)
    assert placed.bound == bound
    assert placed.attained == pytest.approx(attained)


def test_peaks_are_measured_through_the_backend() -> None:
    with torch.inference_mode():
        peaks = roofline.calibrate(eager, "fp32", "cpu", HostClock())
    assert peaks.flops_per_s == max(peaks.gemm_flops_per_s, peaks.conv_flops_per_s) > 0
    assert peaks.bytes_per_s > 1e8
    assert 0 < peaks.seconds_per_call < 1e-2


class Chain(nn.Module):
    """Two linear layers with a ReLU between them, and the first one's output read once more at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5, bias=False), nn.Linear(5, 7, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.first(x)
        return self.second(torch.relu(y)), torch.exp(y)


def test_bytes_moved_are_weights_and_what_crosses_a_part_once() -> None:
    with torch.device("meta"):
        model, x = Chain(), torch.empty(2, 3)
    parts = [Part(name, name, "glue", "", None, (getattr(model, name),)) for name in ("first", "second")]
    counted = flops.count(model, (x,), {}, parts)
    assert counted.moved_by_part == {
        "first": 4 * (2 * 3 + 3 * 5 + 2 * 5),  # in, weights, and the output once though two others read it
        "second": 4 * (2 * 5 + 5 * 7 + 2 * 7),
        "other": 4 * (2 * 5 + 2 * 5 + 2 * 5),  # y in; relu and exp out
    }
    assert counted.calls_by_part == {"first": 1, "second": 1, "other": 2}


def test_a_unets_parts_move_at_least_their_parameters() -> None:
    unet = make_unet().to("meta")
    parts = list(iter_parts(unet))
    counted = flops.count(unet, (), unet_args(device="meta"), parts)
    for part in parts:
        assert counted.moved_by_part[part.fqn] > part.parameter_bytes == 4 * part.params


def test_it_is_in_the_terminal_and_in_the_csv() -> None:
    profile = synthetic.profile()
    units = tuple(
        unit.model_copy(update={"roofline": roofline.place(unit.macs, 1000, 1, unit.latency_s.median, PEAKS)})
        for unit in profile.units
    )
    placed = profile.model_copy(update={"units": units, "peaks": PEAKS})
    stream = io.StringIO()
    console.print_report(Report(placed), Console(width=80, file=stream, highlight=False))
    assert "What bounds it?" in stream.getvalue()
    assert "200 GFLOP/s in a matrix product, 100 in a convolution, 10.0 GB/s, 10.0 µs a call" in " ".join(
        stream.getvalue().split()
    )
    frame = units_frame(placed).set_index("fqn")
    assert frame.loc["down_blocks.0.attentions.0", "bound"] == "compute"
    plain = io.StringIO()
    console.print_report(Report(profile), Console(width=80, file=plain, highlight=False))
    assert "What bounds it?" not in plain.getvalue()


@pytest.mark.parametrize(
    ("share", "mapped", "told"), [(None, None, False), (0.02, None, False), (0.12, None, True), (0.12, 0.998, False)]
)
def test_memory_that_goes_to_and_fro_is_told_with_its_remedy(
    share: float | None, mapped: float | None, told: bool
) -> None:
    host = HostUse(others_cores=0.0, steal_cores=0.0, kernel_share=share, page_faults_per_s=154321.0)
    seen = mapped and Estimate(median=mapped, low=mapped, high=mapped)
    placed = synthetic.with_roofline(synthetic.profile())
    profile = placed.model_copy(update={"host": host, "mapped_share": seen})
    stream = io.StringIO()
    console.print_report(Report(profile), Console(width=80, file=stream, highlight=False))
    sentence = "The kernel took 12 % of the CPU time for 154,321 page faults a second"
    for text in (" ".join(stream.getvalue().split()), html.page(Report(profile)).replace("\u00a0", " ")):
        assert (sentence in text) is told
        assert ("MALLOC_TRIM_THRESHOLD_=4294967296" in text) is told


@pytest.mark.parametrize("change", [{"device": "cuda"}, {"environment": {"malloc": "MALLOC_TRIM_THRESHOLD_=1"}}])
def test_no_word_of_memory_where_it_would_not_help(change: dict[str, Any]) -> None:
    host = HostUse(others_cores=0.0, steal_cores=0.0, kernel_share=0.12, page_faults_per_s=154321.0)
    profile = synthetic.with_roofline(synthetic.profile()).model_copy(update={"host": host} | change)
    assert "The kernel took" not in html.page(Report(profile))

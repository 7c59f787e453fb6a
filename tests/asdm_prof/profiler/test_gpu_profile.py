"""A whole profile on stubs of torch.cuda: what launches take, what kernels take, and what bounds a unit."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from asdm.measure import repeats
from asdm.measure.clocks import clock_for
from asdm.records.measurement import Estimate, GpuUse
from asdm.unet import blocks
from asdm_prof.analysis.transfer import compare
from asdm_prof.planner.plan import make_plan
from asdm_prof.profiler import checks, gpu, gpu_checks, profile as profiler, roofline
from asdm_prof.profiler.gpu import GpuRun
from asdm_prof.profiler.gpu_checks import GpuFindings
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.records import Peaks, Profile, TrustLine
from asdm_prof.renderers.html.sections.comparison import answer
from asdm_prof.renderers.html.sections.plan import plan_lines
from asdm_prof.renderers.html.sections.roofline import section
from tests.asdm_prof import synthetic
from tests.fake_cuda import FakeCuda, fake_cuda, slow, with_nvml
from tests.tiny import SMALL, make_unet, unet_args

KERNEL_MS, LAUNCH_MS = 1.0, 3.0  # of every part: in a graph, and more than that call by call
PEAKS = Peaks(gemm_flops_per_s=2e11, conv_flops_per_s=1e11, bytes_per_s=1e10, seconds_per_call=1e-5)


@pytest.fixture(scope="module")
def cuda() -> Iterator[FakeCuda]:
    with fake_cuda() as fake:
        yield fake


@pytest.fixture(scope="module")
def profiles(cuda: FakeCuda, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Profile]:
    """A small UNet, of whose parts each takes a kernel of 1 ms that Python needs 3 ms to launch, by two backends."""

    folder = tmp_path_factory.mktemp("small") / "unet"
    make_unet(**SMALL).save_pretrained(folder, safe_serialization=True)
    load = profiler.loading.load_unet

    def slow_unet(*args: Any, **options: Any) -> Any:
        unet = load(*args, **options)
        for part in blocks.iter_parts(unet):
            slow(part.modules[0], cuda, KERNEL_MS, LAUNCH_MS)
        return unet

    told = {"TotalEnergyConsumption": 0, "ClockInfo1": 1980, "Temperature0": 50, "ComputeRunningProcesses": ["this"]}
    settings = ProfileSettings(device="cuda:1", time_budget_s=0.1, min_rounds=2, size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiler.loading, "load_unet", slow_unet)
        patch.setattr(repeats, "GPU_FLOOR_S", 0.0)
        patch.setattr(profiler.roofline, "calibrate", lambda *_: PEAKS)
        patch.setattr(profiler, "time_hooks", lambda *_: [0.0] * 4)
        patch.setattr(profiler, "replaceable", lambda *_: {})
        patch.setattr(profiler, "_count_again", lambda *_: None)
        with_nvml(patch, **told)
        return {name: profiler.profile(str(folder), replace(settings, backend=name)) for name in ("eager", "cudagraph")}


def test_an_eager_profile_tells_kernels_from_launches(profiles: dict[str, Profile]) -> None:
    profile = profiles["eager"]
    unit = profile.part("mid_block.resnets.0")
    assert unit.gpu_s == pytest.approx(KERNEL_MS / 1e3)
    assert unit.latency_s.median == pytest.approx((KERNEL_MS + LAUNCH_MS) / 1e3)
    assert unit.roofline is not None
    assert (unit.roofline.bound, unit.roofline.launch_s) == ("launch", pytest.approx(LAUNCH_MS / 1e3))
    whole, parts = profile.whole, len(profile.parts) - 1
    assert whole.gpu_s is not None
    assert whole.gpu_s.median == pytest.approx(parts * KERNEL_MS / 1e3)
    assert whole.latency_s.median == pytest.approx(parts * (KERNEL_MS + LAUNCH_MS) / 1e3)


def test_a_graphs_profile_waits_for_no_launch(profiles: dict[str, Profile]) -> None:
    profile = profiles["cudagraph"]
    assert [part.latency_s.median for part in profile.units] == pytest.approx([KERNEL_MS / 1e3] * len(profile.units))
    assert {part.roofline.launch_s for part in profile.units if part.roofline} == {0.0}
    assert "launch" not in {part.roofline.bound for part in profile.units if part.roofline}
    assert profile.whole.gpu_s == Estimate(**profile.whole.latency_s.model_dump(include={"median", "low", "high"}))
    assert not [line for line in profile.trust if "launches" in line.check]


def test_both_have_memory_kernels_and_the_card(cuda: FakeCuda, profiles: dict[str, Profile]) -> None:
    for profile in profiles.values():
        weights = sum(part.parameter_bytes for part in profile.parts)
        assert profile.whole.measured_peak_bytes == cuda.peak - cuda.held + weights
        kernels = {part.attention_kernels for part in profile.units if part.kind == "transformer"}
        assert kernels == {("flash", "flash")}
        assert profile.whole.wall_s is not None
        assert profile.gpu is not None
        assert profile.gpu.sm_mhz == 1980
        assert profile.environment["memory_format"] == "contiguous"
        assert profile.environment["fp32_convolutions"] == "ieee"
        assert Profile.model_validate_json(profile.to_json()) == profile


def test_only_the_card_that_was_named_was_used(cuda: FakeCuda, profiles: dict[str, Profile]) -> None:
    assert (set(cuda.recorded), set(cuda.synchronized)) == ({1}, {1})


def test_a_cpus_profile_has_none_of_it() -> None:
    written = synthetic.profile().to_json()
    for name in ("gpu_s", "wall_s", "gpu_busy", "launch_s", "attention_kernels", "measured_peak_bytes", '"gpu"'):
        assert name not in written


# ---------------------------------------------------------------------------------------------- what bounds a unit


@pytest.mark.parametrize(
    ("latency_s", "gpu_s", "bound", "launch_s"),
    [
        (0.25, 0.11, "launch", 0.14),  # 100 ms of arithmetic at least, and 140 ms in which nothing ran
        (0.15, 0.11, "compute", 0.04),
        (0.10, 0.11, "compute", 0.0),  # the graph was no faster
        (0.25, None, "compute", None),  # no graph
    ],
)
def test_launches_bound_what_waits_for_them_longest(
    latency_s: float, gpu_s: float | None, bound: str, launch_s: float | None
) -> None:
    placed = roofline.place(10**10, 10**8, 30, latency_s, PEAKS, gpu_s)
    assert placed.bound == bound
    assert placed.launch_s == (None if launch_s is None else pytest.approx(launch_s))


def test_a_peak_is_that_of_the_size_from_which_it_grows_no_more() -> None:
    tried = []

    def rates() -> Iterator[float]:
        for rate in (10.0, 80.0, 300.0, 305.0, 900.0):
            tried.append(rate)
            yield rate

    assert roofline.highest(rates()) == 305.0
    assert tried == [10.0, 80.0, 300.0, 305.0]
    assert roofline.highest(iter([7.0])) == 7.0


def test_peaks_of_a_gpu_come_from_large_problems_and_calls_from_a_graph(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roofline, "SECONDS_EACH", 0.0)
    monkeypatch.setattr(roofline, "GEMM", 8)
    monkeypatch.setattr(roofline, "CONV_CHANNELS", 2)
    monkeypatch.setattr(roofline, "CONV_SIZE", 4)
    sizes: list[tuple[int, ...]] = []

    class Session:
        def __init__(self, module: Any, inputs: dict[str, Any], parts: Any, clock: Any) -> None:
            self.shape = inputs["input"].shape
            sizes.append(tuple(self.shape))

        def run(self) -> float:
            return 1.0 if self.shape[0] < 32 else 1e3  # as fast for any small problem

    backend = type("Backend", (), {"open_session": Session})
    monkeypatch.setattr(roofline, "_triad", lambda device, clock: lambda: 1.0)
    captures = cuda.captures
    with torch.inference_mode():
        peaks = roofline.calibrate(backend, "fp32", "cuda:1", clock_for("cuda:1"))
    assert sizes[:3] == [(8, 8), (16, 16), (32, 32)], "beyond 32, a product grows no faster"
    assert sizes[3:] == [(n, 2, 4, 4) for n in (1, 2, 4, 8)]
    assert peaks.gemm_flops_per_s == 2 * 16**3
    assert cuda.captures == captures + 1, "the tiny layers, in one graph"
    assert peaks.bytes_per_s == 3 * 8 * (50 << 20), "arrays of eight times the L2 cache"


# ---------------------------------------------------------------------------------------------- trust


def findings(**facts: Any) -> GpuFindings:
    run = GpuRun("cpu")  # of no card
    run.findings.wall_s, run.findings.kernels_s, run.findings.launched = [0.1] * 4, [0.095] * 4, True
    return replace(run.findings, **facts)


def line(found: GpuFindings, check: str) -> TrustLine:
    return next(line for line in gpu_checks.checks(found) if check in line.check)


def test_a_gpu_that_waits_for_launches_is_told_what_to_do() -> None:
    assert line(findings(), "launches").passed
    waits = line(findings(kernels_s=[0.04] * 4), "launches")
    assert not waits.passed
    assert waits.value.startswith("kernels fill 40% of the wall time")
    assert "use --backend cudagraph" in waits.remedy
    unknown = line(findings(kernels_s=[], no_graph="this forward cannot become a CUDA graph"), "launches")
    assert (unknown.passed, unknown.value) == (False, "this forward cannot become a CUDA graph")


def test_other_processes_and_a_slowed_clock_fail() -> None:
    good = findings(use=GpuUse(sm_mhz=1980, temperature_c=50, other_processes=0))
    assert all(found.passed for found in gpu_checks.checks(good))
    bad = findings(use=GpuUse(sm_mhz=1200, temperature_c=87, other_processes=2, slowed_by=("its temperature",)))
    assert line(bad, "ours alone").remedy.startswith("another process uses the GPU")
    clock = line(bad, "clock")
    assert not clock.passed
    assert clock.value == "at least 1200 MHz, at most 87 °C; slowed by its temperature"
    assert "throttling, held down by its temperature" in clock.remedy


def test_remedies_on_a_gpu_are_a_gpus() -> None:
    profile = synthetic.profile()
    seconds = list(profile.whole.hooked_latency_s.samples)
    for found, advice in ((findings(), "on this GPU"), (None, "close other programs")):
        box = checks.box(profile.whole, profile.parts, seconds, seconds, None, {}, gpu=found)
        noise = next(row for row in box if row.check == "the machine was quiet")
        assert advice in noise.remedy


def test_energy_of_an_image_is_that_of_its_calls() -> None:
    profile = synthetic.profile().model_copy(update={"gpu": GpuUse(joules_per_call=2.0), "batch": 2})
    assert profile.joules_per_image == 2.0 * profile.steps * 2 / 2
    assert synthetic.profile().joules_per_image is None


def test_a_forward_that_cannot_be_captured_leaves_a_profile(cuda: FakeCuda, tiny_unet: Any) -> None:
    def waits(*_: Any) -> None:
        if cuda.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing")

    tiny_unet.mid_block.resnets[0].register_forward_pre_hook(waits)
    found = GpuFindings()
    with torch.inference_mode():
        gpu.examine(found, tiny_unet, unet_args(), [], clock_for("cuda"), ProfileSettings(device="cuda"))
    assert found.no_graph.startswith("this forward cannot become a CUDA graph: operation not permitted")
    assert (found.kernels_s, found.launched, found.peak_bytes is not None) == ([], True, True)


# ---------------------------------------------------------------------------------------------- what is shown


def test_the_page_and_the_terminal_tell_what_the_gpu_told() -> None:
    profile = synthetic.profile()
    call = Estimate(median=0.02, low=0.02, high=0.02)
    whole = profile.whole.model_copy(
        update={
            "gpu_s": call.scaled(0.4), "wall_s": call, "gpu_busy": call.scaled(20), "measured_peak_bytes": 2_500_000_000
        }
    )  # fmt: skip
    units = tuple(
        unit.model_copy(update={"attention_kernels": ("flash", "efficient")}) if unit.kind == "transformer" else unit
        for unit in profile.units
    )
    told = {
        "whole": whole,
        "units": units,
        "peaks": synthetic.PEAKS,
        "gpu": GpuUse(joules_per_call=3.0),
        "steps": 20,
        "guidance_scale": 1.0,
    }
    report = replace(synthetic.report(), profile=profile.model_copy(update=told))
    text = "".join(str(block) for block in section(report).blocks)
    for words in (
        "The kernels alone take 8.00 ms of the 20.0 ms of a call by the wall’s clock: launches take 60 %.",
        "A call allocates 2.50 GB at most; counted were",
        "The UNet takes 60.0 J for an image of 20 steps.",
        "Attentions by SDPA kernel: 16 by flash, 16 by efficient.",
    ):
        assert words in text
    assert "SDPA" not in "".join(str(block) for block in section(synthetic.report()).blocks)


def test_a_plan_and_a_comparison_say_for_which_execution_they_hold() -> None:
    in_graphs = synthetic.profile().model_copy(update={"backend": "cudagraph", "device": "cuda", "dtype": "fp16"})
    plan = make_plan(in_graphs, "0.8")
    assert "It holds for cudagraph, fp16 on cuda, 2 threads, batch 1, 512 px." in plan_lines(plan, in_graphs)
    both = compare([(in_graphs, "a.json"), (in_graphs.model_copy(update={"backend": "eager"}), "b.json")])
    assert answer(both).endswith("What is told here holds for cudagraph, eager.")

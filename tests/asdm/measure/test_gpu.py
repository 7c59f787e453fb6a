"""Measuring on a GPU, on stubs of torch.cuda that keep a clock and a log: which card, which events, which graphs."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from asdm.distill.context import make_accelerator
from asdm.distill.settings import DistillSettings
from asdm.evaluate.settings import BenchSettings
from asdm.measure import backends, clocks, device, gpu, machine, repeats
from asdm.measure.attention import sdpa_kernels
from asdm.measure.backends import compiled, cudagraph, eager
from asdm.models.execution import resolve
from asdm.models.settings import Setup
from asdm.unet import blocks
from asdm_prof.profiler.settings import ProfileSettings
from tests.fake_cuda import FakeCuda, fake_cuda, slow, with_nvml
from tests.tiny import hooks_on, make_unet, unet_args


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with fake_cuda() as fake:
        yield fake


@pytest.fixture
def timed_unet(tiny_unet: nn.Module, cuda: FakeCuda) -> dict[str, float]:
    """The tiny UNet's n-th part takes n ms of the card and what is outside of them 1,000; seconds of each part."""
    parts = list(blocks.iter_parts(tiny_unet))
    for i, part in enumerate(parts):
        slow(part.modules[0], cuda, i + 1)
    slow(tiny_unet, cuda, 1000)
    return {part.fqn: pytest.approx((i + 1) / 1e3) for i, part in enumerate(parts)}


# ---------------------------------------------------------------------------------------------- which card


def test_events_are_of_the_card_that_is_measured(cuda: FakeCuda) -> None:
    clock = clocks.clock_for("cuda:1")
    assert clocks.timed(lambda: cuda.work(250), clock) == pytest.approx(0.25)
    assert (set(cuda.recorded), set(cuda.synchronized)) == ({1}, {1})


def test_a_measurement_makes_its_card_the_current_one(cuda: FakeCuda) -> None:
    with machine.quiet_torch(None, "cuda:1"):
        assert cuda.card == 1
    assert cuda.card == 0


@pytest.mark.parametrize(("name", "card"), [("cuda:1", 1), ("cuda", 0), ("cpu", 0), ("cuda:7", 0)])
def test_a_process_works_on_the_card_that_was_named(name: str, card: int, cuda: FakeCuda) -> None:
    device.use_device(name)
    assert cuda.card == card


def test_every_command_that_takes_a_device_makes_it_current(cuda: FakeCuda, run: Any) -> None:
    missing = run("asdm", "generate", "a cat", "-o", "a.png", "--family", "nowhere", "--device", "cuda:1")
    assert (missing.code, cuda.card) == (2, 1)


def test_training_takes_the_card_that_was_named(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = []
    monkeypatch.setattr("accelerate.Accelerator", lambda **_: cards.append(cuda.card))
    make_accelerator(DistillSettings(device="cuda:1"))
    assert cards == [1]


# ---------------------------------------------------------------------------------------------- eager


def test_events_are_made_once_and_used_again(tiny_unet: nn.Module, cuda: FakeCuda, timed_unet: Any) -> None:
    session = eager.open_session(tiny_unet, unet_args(), list(blocks.iter_parts(tiny_unet)), clocks.clock_for("cuda"))
    with torch.inference_mode():
        first, made = session.run_parts(), cuda.made
        again = session.run_parts()
    assert first[1] == again[1] == timed_unet
    assert cuda.made - made == 2, "the ends of the call"


# ---------------------------------------------------------------------------------------------- one graph


def test_a_graph_is_captured_once_and_gives_every_part_its_time(
    tiny_unet: nn.Module, cuda: FakeCuda, timed_unet: Any
) -> None:
    parts, before = list(blocks.iter_parts(tiny_unet)), hooks_on(tiny_unet)
    with torch.inference_mode():
        session = cudagraph.open_session(tiny_unet, unet_args(), parts, clocks.clock_for("cuda:1"))
        runs = [session.run_parts() for _ in range(3)]
        bare = [session.run() for _ in range(2)]
        assert session.output() == pytest.approx(tiny_unet(**unet_args())[0])
    assert [times for _, times in runs] == [timed_unet] * 3
    assert [whole for whole, _ in runs] == pytest.approx([1 + sum(range(1, len(parts) + 1)) / 1e3] * 3)
    assert bare == pytest.approx([runs[0][0]] * 2)
    assert (cuda.captures, cuda.replays) == (2, 3 + 2 + 1)
    assert hooks_on(tiny_unet) == before


def test_a_capture_is_warmed_up_on_its_own_stream_and_both_graphs_share_memory(
    tiny_unet: nn.Module, cuda: FakeCuda, timed_unet: Any
) -> None:
    with torch.inference_mode():
        session = cudagraph.open_session(tiny_unet, unet_args(), [], clocks.clock_for("cuda"))
        session.run_parts()
    assert set(cuda.warm_ups) == {session.bare.stream}
    assert session.hooked.stream is session.bare.stream
    assert cuda.pools == [None, session.bare.graph.pool()]


def test_a_student_without_parts_is_one_graph(tiny_unet: nn.Module, cuda: FakeCuda) -> None:
    with torch.inference_mode():
        cudagraph.open_session(tiny_unet, unet_args(), [], clocks.clock_for("cuda")).run()
    assert cuda.captures == 1


def test_what_cannot_be_captured_is_told_in_one_sentence(cuda: FakeCuda) -> None:
    class Waits(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            if cuda.capturing is not None:
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCUDA kernel errors …")
            return super().forward(input)

    words = "cannot become a CUDA graph: CUDA error: operation not permitted when stream is capturing; choose --backend"
    with pytest.raises(ValueError, match=words):
        cudagraph.open_session(Waits(2, 2), {"input": torch.ones(1, 2)}, (), clocks.clock_for("cuda"))


def test_a_full_card_stays_a_full_card(cuda: FakeCuda) -> None:
    class Large(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            if cuda.capturing is not None:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return input

    with pytest.raises(torch.OutOfMemoryError):
        cudagraph.open_session(Large(2, 2), {"input": torch.ones(1, 2)}, (), clocks.clock_for("cuda"))


def test_cudagraph_says_what_the_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"^cudagraph needs a cuda device, and this machine has only cpu; choose another"
    ):
        backends.load("cudagraph", "fp32", "cpu")
    with (
        fake_cuda(),
        pytest.raises(ValueError, match=r"^cudagraph does not support the device cpu here; choose from cuda\.$"),
    ):
        backends.load("cudagraph", "fp32", "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "hip", "7.1")
        with pytest.raises(ValueError, match="ROCm does not offer; choose eager"):
            backends.load("cudagraph", "fp16", "cuda")

    class OldEvent:
        def __new__(cls, enable_timing: bool = False) -> Any: ...

    monkeypatch.setattr(torch.cuda, "Event", OldEvent)
    for name in ("cudagraph", "compiled:reduce-overhead", "compiled:max-autotune"):
        with pytest.raises(ValueError, match=rf"^{name} .* torch can from 2\.9 on; this is {torch.__version__[:4]}"):
            backends.load(name, "fp16", "cuda:1")
    backends.load("compiled", "fp16", "cuda:1")
    backends.load("compiled:reduce-overhead", "fp32", "cpu")


# ---------------------------------------------------------------------------------------------- compiled


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The mode of every compilation, none of which takes place."""
    modes: list[str] = []

    def compile(module: Any, dynamic: bool, mode: str) -> Any:
        modes.append(mode)
        return module

    monkeypatch.setattr(torch, "compile", compile)
    return modes


@pytest.mark.parametrize(
    ("name", "whole", "parts"),
    [
        ("compiled", "default", "default"),
        ("compiled:reduce-overhead", "reduce-overhead", "default"),
        ("compiled:max-autotune", "max-autotune", "max-autotune-no-cudagraphs"),
    ],
)
def test_a_mode_is_typed_behind_the_backend(name: str, whole: str, parts: str, compilations: list[str]) -> None:
    unet = make_unet()
    backend = backends.load(name, "fp32", "cpu")
    backend.open_session(unet, unet_args(), list(blocks.iter_parts(unet)), clocks.HostClock())
    assert (compilations[0], set(compilations[1:])) == (whole, {parts})
    assert (backend.HOOKED, backend.NEEDS_WEIGHTS) == (compiled.HOOKED, compiled.NEEDS_WEIGHTS)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "compiled:fast",
            "unknown mode 'fast' of compiled; choose from compiled, compiled:reduce-overhead, compiled:m",
        ),
        ("eager:fast", "unknown mode 'fast' of eager; choose from eager."),
    ],
)
def test_an_unknown_mode_gets_one_sentence(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        backends.load(name, "fp32", "cpu")


def test_parts_of_a_mode_with_graphs_are_timed_in_a_graph(
    tiny_unet: nn.Module, cuda: FakeCuda, timed_unet: Any, compilations: list[str]
) -> None:
    clock = clocks.clock_for("cuda")
    session = backends.load("compiled:reduce-overhead", "fp16", "cuda").open_session(
        tiny_unet, unet_args(), list(blocks.iter_parts(tiny_unet)), clock
    )
    session.replayed = True  # the UNet itself is on the CPU here
    with torch.inference_mode():
        whole, times = session.run_parts()
        session.run_parts()
    assert cuda.captures == 1
    assert times == timed_unet
    assert whole == pytest.approx(2.128)
    assert session.attribution.slowdown[0] == pytest.approx(1.0)


# ---------------------------------------------------------------------------------------------- precision


def precisions() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9")
def test_fp32_is_fp32_in_products_and_convolutions_alike(cuda: FakeCuda) -> None:
    before = precisions()
    assert before[1] == "tf32", "torch's default"
    assert gpu.facts("cuda")["fp32_convolutions"] == "tf32"
    with machine.quiet_torch(None, "cuda:1"):
        assert precisions() == ("ieee", "ieee")
        facts = gpu.facts("cuda:1")
        assert (facts["fp32_products"], facts["fp32_convolutions"]) == ("ieee", "ieee")
    assert precisions() == before
    with machine.quiet_torch(None, "cpu"):
        assert precisions() == before, "a CPU's measurement leaves them alone"


# ---------------------------------------------------------------------------------------------- fingerprint

TOLD = {
    "MigMode": [0, 0], "EnforcedPowerLimit": 700_000, "ClockInfo1": 1755, "MaxClockInfo1": 1980, "ClockInfo2": 2619,
    "MaxClockInfo2": 2619, "Temperature0": 61, "CurrentClocksThrottleReasons": 0x4 | 0x1,
    "ComputeRunningProcesses": ["this one", "another"],
}  # fmt: skip


def test_the_environment_has_what_a_gpus_times_depend_on(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = with_nvml(monkeypatch, **TOLD)
    facts = machine.environment("cuda:1", threads=2)
    assert nvml.uuids == ["GPU-card-1"]
    expected = {
        "gpu": "NVIDIA H100", "driver": "580.95", "mig": "off", "gpu_power_limit": "700 W", "gpu_temperature": "61 °C",
        "gpu_clocks": "SM 1755 of 1980 MHz memory 2619 of 2619 MHz", "gpu_slowed_by": "its power limit",
        "gpu_other_processes": "1", "cudnn_benchmark": "False",
    }  # fmt: skip
    assert expected.items() <= facts.items()
    assert {"flash", "math"} <= set(facts["sdpa"].split())
    assert facts["cuda"] == str(torch.version.cuda)


def test_what_a_card_does_not_tell_is_left_out(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    with_nvml(monkeypatch)
    facts = gpu.facts("cuda")
    assert (facts["driver"], facts["gpu_slowed_by"]) == ("580.95", "nothing")
    assert not {"mig", "gpu_power_limit", "gpu_clocks", "gpu_temperature", "gpu_other_processes"} & set(facts)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "driver" not in gpu.facts("cuda")
    assert gpu.GpuWatch("cuda").read(calls=3) is None


def test_a_watch_adds_up_energy_and_keeps_what_slowed_the_card(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 2.0, 4.0])  # created, looked at, looked at again, read
    energy, clock, reasons = iter([5_000, 9_000]), iter([1980, 1500, 1900]), iter([0x20, 0x0, 0x8])
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: next(now))
    with_nvml(
        monkeypatch, TotalEnergyConsumption=lambda: next(energy), ClockInfo1=lambda: next(clock), Temperature0=70,
        CurrentClocksThrottleReasons=lambda: next(reasons), ComputeRunningProcesses=["this one"],
    )  # fmt: skip
    monkeypatch.setattr(gpu, "LOOK_EVERY_S", 0.0)
    watch = gpu.GpuWatch("cuda")
    now = iter([1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0])
    watch.look()
    watch.look()
    use = watch.read(calls=8)
    assert use is not None
    assert (use.joules_per_call, use.power_w) == (4.0 / 8, 4.0 / 4.0)
    assert (use.sm_mhz, use.temperature_c, use.other_processes) == (1500, 70, 0)
    assert use.slowed_by == ("its temperature", "the hardware")


def test_the_most_memory_of_a_call_counts_what_it_found(cuda: FakeCuda) -> None:
    assert gpu.peak_bytes(lambda: None, "cuda", held_bytes=1000) == (3 << 20) - (1 << 20) + 1000
    assert (cuda.resets, set(cuda.synchronized)) == (1, {0})


def test_every_attention_says_which_kernel_it_takes(tiny_unet: nn.Module) -> None:
    parts = list(blocks.iter_parts(tiny_unet))
    with torch.inference_mode():
        kernels = sdpa_kernels(tiny_unet, unet_args(), parts)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            plain = sdpa_kernels(tiny_unet, unet_args(), parts)
    assert set(kernels) == {part.fqn for part in parts if part.kind == "transformer"}
    assert set(kernels.values()) == {("flash", "flash")}, "self-attention, then that to the text"
    assert set(plain.values()) == {("math", "math")}


# ---------------------------------------------------------------------------------------------- how long


def test_a_measurement_on_a_gpu_lasts_a_few_seconds_at_least() -> None:
    assert repeats.least_seconds("cuda:1") > 0 == repeats.least_seconds("cpu")
    clock = clocks.FakeClock()

    def call() -> float:
        clock.advance(0.01)
        return 0.01

    def rounds(**settings: Any) -> int:
        return len(repeats.interleave({"a": call}, "a", clock, min_rounds=5, **settings)["a"])

    assert rounds(floor_s=2.0) == pytest.approx(200, abs=1)
    assert rounds(floor_s=2.0, max_rounds=20, enough=lambda _: False) == pytest.approx(200, abs=1)
    assert rounds(floor_s=2.0, budget_s=0.5) == pytest.approx(50, abs=1), "the budget comes first"
    assert rounds() == 5


# ---------------------------------------------------------------------------------------------- defaults


def test_a_gpu_is_measured_in_fp16_at_the_batch_of_a_guided_step(cuda: FakeCuda) -> None:
    chosen = resolve(ProfileSettings, {})
    assert (chosen.device, chosen.dtype, chosen.batch) == ("cuda", "fp16", 2)
    assert resolve(BenchSettings, {"device": "cuda:1"}).dtype == "fp16"
    given = {"device": "cuda:1", "dtype": "bf16", "batch": 1}
    own = resolve(ProfileSettings, given)
    assert {name: getattr(own, name) for name in given} == given
    on_cpu = resolve(ProfileSettings, {"device": "cpu"})
    assert (on_cpu.dtype, on_cpu.batch) == ("fp32", 1)
    assert resolve(Setup, {}).dtype == "fp32", "what is not timed keeps its dtype"


def test_what_was_chosen_for_a_gpu_is_said(cuda: FakeCuda, run: Any) -> None:
    words = ["asdm-prof", "profile", "nowhere", "-o", "p.json"]
    assert "Chosen for this GPU: dtype fp16, batch 2; --dtype and --batch would choose otherwise." in run(*words).err
    assert "Chosen" not in run(*words, "--dtype", "fp32", "--batch", "1").err
    assert "Chosen" not in run(*words, "--device", "cpu").err

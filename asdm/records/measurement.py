"""Fields that measured runs share: estimates with their samples, the run's settings, MACs by kind of operation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer

from asdm.utils.record import Frozen, Record, later
from asdm.utils.sizes import Size

MOST = 1e15  # beyond any measured number; sums and squares of it stay finite
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Number = Annotated[float, Field(ge=-MOST, le=MOST)]
Seconds = Annotated[float, Field(ge=0, le=MOST)]
Positive = Annotated[float, Field(gt=0, le=MOST)]
Amount = Annotated[float, Field(ge=0, le=MOST)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0, le=1e4)]  # of a teacher's cost


def device_kind(device: str) -> str:
    """What sort of device it is: `cuda` of `cuda:1`."""
    return device.partition(":")[0]


class Estimate(Frozen):
    """A median with its 95 % interval."""

    median: Number
    low: Number
    high: Number

    def scaled(self, factor: float) -> Estimate:
        return Estimate(median=self.median * factor, low=self.low * factor, high=self.high * factor)


class Latency(Estimate):
    """Seconds: median, 95 % interval of the median, and every raw sample in the order it was taken."""

    samples: tuple[Number, ...]


def _is_ratio(ratio: Estimate) -> Estimate:
    if not 0 < ratio.median <= 1e4:
        raise ValueError(f"a ratio of latencies must be above 0 and at most 10000, got {ratio.median}")
    return ratio


def _is_time(latency: Estimate) -> Estimate:
    if latency.median <= 0:
        raise ValueError(f"a latency must be above 0, got {latency.median}")
    return latency


Ratio = Annotated[Estimate, AfterValidator(_is_ratio)]
Time = Annotated[Latency, AfterValidator(_is_time)]


class Run(Record):
    """The fields of every record of a measured run: what was run, and on which machine."""

    created_utc: str
    command: str
    family: str
    dtype: Literal["fp32", "bf16", "fp16"]
    device: str
    threads: Count
    environment: dict[str, str]

    @model_serializer(mode="wrap")
    def _in_order(self, dumped: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Order the file: what was run, then the results as the record declares them, then the environment."""
        fields = dumped(self)
        places = {name: i for i, name in enumerate(RUN_FIRST)} | {"environment": len(RUN_FIRST) + 1}
        return {name: fields[name] for name in sorted(fields, key=lambda name: places.get(name, len(RUN_FIRST)))}


class UNetRun(Run):
    """A run of whole UNets: with which weights, in which backend, at which shape."""

    weights: str
    backend: str
    seed: int
    batch: Annotated[int, Field(ge=1, lt=1 << 31)]
    size: Size  # pixels per side of the image, or its width and height


RUN_FIRST = (
    "schema_", "schema", "created_utc", "command", "family", "title", "weights", "config_sha256", "backend", "dtype",
    "device", "threads", "seed", "batch", "size",
)  # fmt: skip


class HostUse(Frozen):
    """Load on the machine during a run: by other programs in mean cores, and by the kernel for this process."""

    others_cores: float  # other programs
    steal_cores: float  # a hypervisor, for other machines
    kernel_share: float | None = later(None)  # of this process's CPU seconds
    page_faults_per_s: float | None = later(None)  # of this process, that no disk was read for


class GpuUse(Frozen):
    """A GPU during a run, as NVML told it; None is what the card or its driver keeps to itself."""

    sm_mhz: int | None = None  # the lowest clock of its multiprocessors that was seen
    temperature_c: int | None = None  # the highest that was seen
    slowed_by: tuple[str, ...] = ()  # what held the clock down
    other_processes: int | None = None
    power_w: float | None = None  # the mean
    joules_per_call: float | None = None  # of the UNet, with the pauses between two calls


class Macs(Frozen):
    """Multiply-adds by kind of operation; one MAC is two FLOPs."""

    conv_macs: Count = 0
    linear_macs: Count = 0
    attention_macs: Count = 0

    @property
    def macs(self) -> int:
        return self.conv_macs + self.linear_macs + self.attention_macs

    def __add__(self, other: Macs) -> Macs:
        return Macs(
            conv_macs=self.conv_macs + other.conv_macs,
            linear_macs=self.linear_macs + other.linear_macs,
            attention_macs=self.attention_macs + other.attention_macs,
        )


SMALL_MACS = 1e10  # of a whole UNet, below which it and its parts are counted in millions


def mac_unit(whole: float) -> tuple[float, str]:
    """The unit in which a model of `whole` MACs and its parts are shown, as (size, name)."""
    return (1e6, "MMAC") if whole < SMALL_MACS else (1e9, "GMAC")

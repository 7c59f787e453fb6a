"""How numbers and names read in the console and in figures; private, shared by the renderers of this folder.

Three significant figures, seconds in and "ms" or "s" out, and the interval in the unit of its median.
"""

from __future__ import annotations

import math
import re
from collections import Counter

from asdm.measure.machine import KEEP_MEMORY
from asdm.plan.edits import MeasuredAt, Prediction
from asdm.records.bench import MEASURES
from asdm.records.measurement import Estimate
from asdm.utils import sizes
from asdm.utils.console import plain as plain, quoted as quoted  # re-exported to the sections
from asdm_prof.records import Interval, Profile

SECOND_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
COUNT_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
KERNEL_WORTH_A_WORD = 0.05  # of the CPU time
# What a part is bound by.
BOUNDS = {"compute": "arithmetic", "memory": "memory", "overhead": "calls", "launch": "launches"}


def metric_name(metric: str, most: int = 34) -> str:
    """A quality metric under the name that papers give it."""
    return MEASURES[metric].title if metric in MEASURES else plain(metric.replace("_", " "), most)


def decimals(value: float, digits: int = 3) -> int:
    """Decimal places that show `value` with so many significant figures; negative left of the point."""
    if value == 0:
        return 0
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return digits - 1 - math.floor(math.log10(abs(round(value, places))))


def fixed(value: float, places: int) -> str:
    """`value` with so many decimal places: (1234, -1) → "1230"; never "-0"."""
    return f"{round(value, places) + 0.0:.{max(places, 0)}f}"


def number(value: float, digits: int = 3) -> str:
    """Three significant figures without an exponent: "4110", "19.4", "0.0250"."""
    return fixed(value, decimals(value, digits))


def scaled(value: float, unit: float) -> str:
    """Three figures, and two decimals at the most, so that a column stays narrow."""
    shown = value / unit
    return number(shown) if shown >= 1 else fixed(shown, 2)


def exponent(value: float) -> str:
    """A damage, which may be of any size: "3.42e-04"."""
    return f"{value:.2e}"


def between(bounds: Interval, form: str = ".2e") -> str:
    """An interval of a damage, or of what `form` says."""
    return f"[{bounds.low:{form}}, {bounds.high:{form}}]"


def amount(value: float) -> str:
    """A damage, of any size: "0.0250", and below a thousandth "1.75e-08"."""
    return number(value) if value == 0 or abs(value) >= 1e-3 else exponent(value)


def amount_interval(damage: Interval) -> str:
    """The bounds of a damage, written as the damage is; empty where there are none."""
    if damage.low == damage.high:
        return ""
    if 0 < abs(damage.value) < 1e-3:
        return between(damage)
    places = decimals(damage.value)
    return f"[{fixed(damage.low, places)}, {fixed(damage.high, places)}]"


def amount_text(damage: Interval) -> str:
    """A damage with its interval where it has one."""
    return f"{amount(damage.value)} {amount_interval(damage)}".rstrip()


def interval(estimate: Estimate, scale: float = 1.0) -> str:
    """The bounds with the decimals of their median: "[4.37, 4.46]"; `scale` is the size of the unit shown."""
    places = decimals(estimate.median / scale)
    return f"[{fixed(estimate.low / scale, places)}, {fixed(estimate.high / scale, places)}]"


def second_unit(value: float) -> tuple[float, str]:
    """The unit in which so many seconds read best, as (size, name)."""
    rounded = abs(round(value, decimals(value)))
    return next((unit for unit in SECOND_UNITS if rounded >= unit[0]), SECOND_UNITS[-1] if value else SECOND_UNITS[1])


def seconds(value: float) -> str:
    """0.412 → "412 ms", 4.41 → "4.41 s"."""
    scale, unit = second_unit(value)
    return f"{number(value / scale)} {unit}"


def seconds_interval(estimate: Estimate) -> str:
    """The bounds of a time in the unit that `seconds` picks for its median."""
    return interval(estimate, second_unit(estimate.median)[0])


def count_unit(value: float) -> tuple[float, str]:
    """The prefix in which a count reads best, as (size, name)."""
    rounded = abs(round(value, decimals(value)))
    return next((unit for unit in COUNT_UNITS if rounded >= unit[0]), (1.0, ""))


def count(value: float) -> str:
    """MACs and parameters: "19.4 G", "2.55 M", "320"."""
    scale, unit = count_unit(value)
    return f"{number(value / scale)} {unit}".rstrip()


def ratio(value: float) -> str:
    """Student / teacher: "0.78×"."""
    return f"{value:.2f}×"


def ratio_interval(bounds: Estimate | Prediction) -> str:
    """The interval of a ratio, `[0.74, 0.78]`."""
    return f"[{bounds.low:.2f}, {bounds.high:.2f}]"


def percent(share: float) -> str:
    """A share as "37 %", and with one decimal below ten: "4.8 %"."""
    shown = 100 * share
    return f"{shown:.1f} %" if abs(shown) < 9.95 else f"{shown:.0f} %"


def plural(n: int, what: str) -> str:
    """`1 unit`, `2 units`."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def kernel_sentence(profile: Profile) -> str:
    """What memory costs that is given back and fetched again, and how to keep it.

    Empty where that is little or another device computes, where the allocator keeps memory already, and where parts are
    timed in runs of their own, as opening those fetches memory too.
    """
    host = profile.host
    elsewhere = profile.device != "cpu" or profile.mapped_share or "malloc" in profile.environment
    if host is None or elsewhere or (host.kernel_share or 0.0) < KERNEL_WORTH_A_WORD:
        return ""
    faults = f" for {host.page_faults_per_s:,.0f} page faults a second" if host.page_faults_per_s else ""
    keep = " ".join(f"{name}={value}" for name, value in KEEP_MEMORY.items())
    return (
        f"The kernel took {percent(host.kernel_share or 0.0)} of the CPU time{faults}: memory is given back and "
        f"fetched again. In a process started with {keep}, glibc keeps it."
    )


def execution(at: MeasuredAt) -> str:
    """Where a plan's prices come from, and so where they hold."""
    where = f"{at.backend}, {at.dtype} on {at.device}, {plural(at.threads, 'thread')}"
    return plain(f"{where}, batch {at.batch}, {sizes.shown(at.size)} px")


def gpu_sentences(profile: Profile) -> str:
    """What a GPU told besides the times of calls: how busy it was, its memory, its energy, the SDPA kernels."""
    whole, told = profile.whole, []
    if whole.gpu_s and whole.wall_s and whole.gpu_busy:
        told.append(
            f"The kernels alone take {seconds(whole.gpu_s.median)} of the {seconds(whole.wall_s.median)} of a call by "
            f"the wall’s clock: launches take {percent(max(1 - whole.gpu_busy.median, 0.0))}."
        )
    if whole.measured_peak_bytes is not None:
        measured, counted = (number(n / 1e9) for n in (whole.measured_peak_bytes, whole.peak_memory_bytes))
        told.append(f"A call allocates {measured} GB at most; counted were {counted} GB.")
    if profile.joules_per_image is not None:
        told.append(f"The UNet takes {number(profile.joules_per_image)} J for an image of {profile.steps} steps.")
    kernels = Counter(kernel for unit in profile.units for kernel in unit.attention_kernels)
    if kernels:
        counts = ", ".join(f"{n} by {plain(kernel)}" for kernel, n in kernels.most_common())
        told.append(f"Attentions by SDPA kernel: {counts}.")
    return " ".join(told)


def tied(text: str) -> str:
    """The same text, in which a number and its unit stay on one line."""
    return type(text)(re.sub(r"(\d) (?=(?:%|ms|s|µs|[kMGT]|[kMGT]?MAC|MB|GB)(?!\w))", "\\1\u00a0", text))

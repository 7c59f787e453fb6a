"""How many UNet calls a sampler makes for one image: as many as steps, one more, or nearly two per step."""

from __future__ import annotations

from typing import Any


def calls_of(scheduler: Any, steps: int) -> int:
    """UNet calls of an image in `steps` steps; the sampler itself is left as it is."""
    probe = type(scheduler).from_config(scheduler.config)
    probe.set_timesteps(steps)
    return len(probe.timesteps)


def other_number(name: str, planned: int, calls: int, scheduler: Any) -> str:
    """The sentence for a schedule of another number of calls, with the steps that would fit where there are any."""
    fitting = next((steps for steps in range(planned, 0, -1) if _makes(scheduler, steps, planned)), None)
    draw = f"draw with {fitting} steps" if fitting else "choose another sampler, such as ddim"
    return (
        f"{name} is a schedule of {planned} UNet calls, and this sampler makes {calls}; {draw}, or make a schedule "
        f"for {calls}."
    )


def _makes(scheduler: Any, steps: int, calls: int) -> bool:
    try:
        return calls_of(scheduler, steps) == calls
    except Exception:  # PNDM, of fewer steps than its warm-up has; samplers have errors of their own
        return False

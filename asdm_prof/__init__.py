"""A-SDM's profiler: where a Stable Diffusion UNet spends its time, what is redundant, and what to prune.

A dozen names mirror the commands and return their records: `asdm_prof.profile("mini")`. Importing this package costs
nothing; torch comes with the first call that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asdm_prof.api import (
        bench,
        build,
        diff,
        distill,
        env,
        export,
        flops,
        generate,
        load,
        plan,
        profile,
        rank,
        report,
        schedule,
    )

__all__ = [
    "bench", "build", "diff", "distill", "env", "export", "flops",
    "generate", "load", "plan", "profile", "rank", "report", "schedule",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        from asdm_prof import api

        return getattr(api, name)
    raise AttributeError(f"module 'asdm_prof' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

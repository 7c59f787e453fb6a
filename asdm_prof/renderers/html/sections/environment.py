"""What the profile was measured with: its settings and the machine."""

from __future__ import annotations

from asdm_prof.renderers import Report
from asdm_prof.renderers.html.content import Column, Section
from asdm_prof.renderers.html.tables import name_cells, table


def section(report: Report) -> Section:
    """Settings first, then the environment as it was recorded."""
    profile = report.profile
    settings = {
        "measured": profile.created_utc,
        "backend": profile.backend,
        "dtype": profile.dtype,
        "device": profile.device,
        "threads": profile.threads,
        "seed": profile.seed,
        "batch": profile.batch,
        "size": f"{profile.size} px, latent {profile.latent} × {profile.latent}",
        "weights": profile.weights,
    }
    rows = settings | dict(profile.environment)
    fields = [
        (Column("what", numeric=False), name_cells(map(str, rows))),
        (Column("value", numeric=False), name_cells(map(str, rows.values()))),
    ]
    return Section("Environment", [table("environment", "What this was measured with.", fields)])

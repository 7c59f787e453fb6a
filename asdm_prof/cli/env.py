"""`asdm-prof env`: what a bug report needs."""

from __future__ import annotations

import json

from asdm.cli.options import Json


def env(as_json: Json = False) -> None:
    """What a bug report needs: versions, machine, devices and extras; no names of users, files or hosts."""
    from asdm_prof.profiler import environment

    facts = environment.facts()
    print(json.dumps(facts, indent=1, allow_nan=False) if as_json else "\n".join(environment.lines(facts)))

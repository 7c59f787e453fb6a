"""`asdm cache`: encode a data set once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import TEACHER, Json, Without, from_settings
from asdm.data.settings import CacheSettings
from asdm.utils import console


@from_settings
def cache(
    data: Annotated[str, typer.Argument(help="emoji, folder:DIR, webdataset:SHARDS or prompts:FILE.")],
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the shards; train with --data latents:DIR.")
    ],
    teacher: Annotated[str | None, typer.Option(help=TEACHER)] = None,
    settings: Annotated[CacheSettings, Without("threads", "batch")],
    as_json: Json = False,
) -> None:
    """Encode a data set once for many runs; repeat the command to resume an interrupted one."""
    from asdm.data.cache import cache_latents
    from asdm.data.datasets import named

    with console.progress("Caching", "pictures") as tell:
        manifest = cache_latents(data, teacher, output, settings, tell)
    if as_json:
        print(
            json.dumps(manifest.model_dump(mode="json", by_alias=True, exclude={"shards"}), indent=1, allow_nan=False)
        )
        return
    names = manifest.first_skipped
    why = "; ".join(
        f"{count} with {console.plain(reason)}"
        + (f" ({console.plain(named(names[reason], count), 500)})" if reason in names else "")
        for reason, count in manifest.why_skipped.items()
    )
    skipped = f" ({manifest.skipped} left out: {why})" if manifest.skipped else ""
    examples, shards = sum(len(shard.captions) for shard in manifest.shards), len(manifest.shards)
    source = console.quoted(f"latents:{output}")
    print(f"{examples} examples in {shards} shards{skipped}. Train on them with --data {source}")

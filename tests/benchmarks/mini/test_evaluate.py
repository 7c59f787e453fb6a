"""What an evaluation of the mini keeps of earlier ones, and its table."""

from __future__ import annotations

from typing import Any

from asdm.records.bench import Metric
from benchmarks.mini.evaluate import MiniQuality, Row, table

NAMES = ("found_from_outside", "frechet_from_outside", "picture_found", "recall_at_1", "frechet_distance")


def quality(*scales: float | None, value: float = 0.5, **changes: Any) -> MiniQuality:
    mark = Metric(value=value, low=value - 0.1, high=value + 0.1)
    rows = [
        Row(name="reconstructed" if scale is None else "generated", split="train", guidance_scale=scale, pictures=9,
            metrics=dict.fromkeys(NAMES, mark))
        for scale in scales
    ]  # fmt: skip
    facts = {"created_utc": "", "weights_sha256": "0", "steps": 30, "seed": 0, "psnr_db": {"train": 27.0}} | changes
    return MiniQuality(rows=tuple(rows), **facts)


def test_rows_of_the_same_weights_stay_and_come_in_order() -> None:
    both = quality(None, 2.0, value=0.75).beside(quality(None, 3.0, 2.0))
    assert [row.guidance_scale for row in both.rows] == [None, 2.0, 3.0]
    assert [row.metrics["recall_at_1"].value for row in both.rows] == [0.75, 0.75, 0.5]


def test_rows_of_other_weights_go() -> None:
    new = quality(2.0)
    assert new.beside(quality(3.0, weights_sha256="1")) == new
    assert new.beside(quality(3.0, steps=20)) == new


def test_the_table_has_every_row_with_both_judges() -> None:
    head, _, first, second = table(quality(None, 3.0)).strip().splitlines()
    assert head.startswith("| pictures | n | found, from outside |")
    assert first == "| the VAE's reconstructions, trained | 9 |" + " 0.5 [0.4, 0.6] |" * 5
    assert second.startswith("| the UNet's, guidance 3, trained | 9 |")

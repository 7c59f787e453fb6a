"""The sheet without captions: the list gives nothing away, and answers are scored once they are given."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from benchmarks.mini.blind import LISTED, SHOWN, Blind, ask, scored
from benchmarks.mini.evaluate import sheet

CAPTIONS = tuple(f"thing {i}" for i in range(100))


def asked(seed: int = 0) -> Blind:
    question = ask(CAPTIONS, seed)
    return Blind(
        created_utc="2026-01-01T00:00:00Z", weights_sha256="ab", guidance_scale=3.0, steps=30, seed=seed,
        captions=question.captions,
    )  # fmt: skip


def test_a_question_has_each_pictures_caption_among_twice_as_many_in_another_order() -> None:
    question = ask(CAPTIONS, 0)
    assert len(set(question.captions)) == LISTED
    assert len(set(question.right)) == SHOWN
    assert list(question.right) != sorted(question.right)
    assert question == ask(CAPTIONS, 0) != ask(CAPTIONS, 1)
    with pytest.raises(ValueError, match="64 captions to choose from are needed, got 9"):
        ask(CAPTIONS[:9], 0)


def test_what_is_right_is_written_with_the_answers_alone() -> None:
    question, record = ask(CAPTIONS, 0), asked()
    assert record.right is None
    answers = (*question.right[:20], *(right % LISTED + 1 for right in question.right[20:]))
    done = scored(record, question, answers)
    assert (done.hits, done.right, done.answers) == (20, question.right, answers)


@pytest.mark.parametrize(
    ("seed", "answers", "message"),
    [
        (0, (1,) * 31, "32 answers from 1 to 64 are needed"),
        (0, (65,) * 32, "32 answers from 1 to 64 are needed"),
        (1, (1,) * 32, "of another seed"),
    ],
)
def test_other_answers_are_refused(seed: int, answers: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scored(asked(), ask(CAPTIONS, seed), answers)


def test_the_sheet_shows_all_pictures(tmp_path) -> None:
    (tmp_path / "sheet.png").write_bytes(sheet(torch.rand(10, 3, 8, 8) * 2 - 1, list("0123456789")))
    assert Image.open(tmp_path / "sheet.png").size == (1080, 324)

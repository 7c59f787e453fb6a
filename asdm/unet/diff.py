"""Teacher and student side by side, block → layer → unit: what stays, what is removed, what is replaced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from torch import nn

from asdm.records.build import DiffRow
from asdm.records.measurement import mac_unit
from asdm.unet import blocks, flops
from asdm.unet.surgery import Applied

Row = tuple[str, int, int, str, int, int]  # teacher's name, parameters, MACs; the same of the student


def diff(teacher: nn.Module, teacher_macs: flops.Count, student: nn.Module, student_macs: flops.Count,
         applied: Applied) -> tuple[DiffRow, ...]:  # fmt: skip
    """A row for every unit and piece of glue of the teacher, in data-flow order."""
    after = {applied.name_map[part.fqn]: part for part in blocks.iter_parts(student)}
    rows = []
    for part in blocks.iter_parts(teacher):
        left = None if part.fqn in applied.removed else after[part.fqn]
        replacement = applied.replaced.get(part.fqn)
        own = {name: getattr(part, name) for name in ("fqn", "label", "kind", "block", "layer", "params")}
        rows.append(
            DiffRow(
                **own,
                fate="goes" if left is None else "replaced" if replacement else "stays",
                replacement=replacement,
                student_fqn=left.fqn if left else None,
                macs=teacher_macs.by_part[part.fqn].macs,
                student_params=left.params if left else 0,
                student_macs=student_macs.by_part[left.fqn].macs if left else 0,
            )
        )
    return tuple(rows)


def render(rows: Sequence[DiffRow], whole: bool = True) -> str:
    """Two trees side by side; without `whole`, a block in which nothing changed is one line."""
    macs, unit = mac_unit(sum(row.macs for row in rows))
    lines = [("teacher", "M params", unit, "student", "M params", unit)]
    lines += [_cells(row, macs) for row in _tree(rows, whole)]
    widths = [max(len(line[i]) for line in lines) for i in range(6)]

    def line(cells: tuple[str, ...]) -> str:
        padded = [c.ljust(w) if i in (0, 3) else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"{'  '.join(padded[:3])}  │  {'  '.join(padded[3:])}".rstrip()

    return "\n".join(line(cells) for cells in lines)


def _cells(row: Row, unit: float) -> tuple[str, str, str, str, str, str]:
    name, params, macs, student, student_params, student_macs = row
    gone = not student.strip()
    return (
        name, f"{params / 1e6:.2f}", f"{macs / unit:.2f}",
        student, "" if gone else f"{student_params / 1e6:.2f}", "" if gone else f"{student_macs / unit:.2f}",
    )  # fmt: skip


def _tree(rows: Sequence[DiffRow], whole: bool) -> Iterator[Row]:
    for block, inside in groupby(rows, key=lambda row: row.block or row.fqn):
        members = list(inside)
        if not members[0].block:
            yield _unit(members[0], 0)
            continue
        yield _sum(blocks.block_label(block), members)
        if whole or any(row.fate != "stays" for row in members):
            yield from _layers(members)


def _layers(rows: Sequence[DiffRow]) -> Iterator[Row]:
    for layer, inside in groupby(rows, key=lambda row: row.layer):
        members = list(inside)
        if layer is not None:
            yield _sum(f"  layer {layer}", members)
        yield from (_unit(row, 2 if layer is None else 4) for row in members)


def _sum(name: str, rows: Iterable[DiffRow]) -> Row:
    members = list(rows)
    left = any(row.fate != "goes" for row in members)
    return (
        name, sum(row.params for row in members), sum(row.macs for row in members),
        name if left else "", sum(row.student_params for row in members), sum(row.student_macs for row in members),
    )  # fmt: skip


def _unit(row: DiffRow, indent: int) -> Row:
    name = " " * indent + row.label
    student = {"goes": "", "stays": name, "replaced": f"{name} → {row.replacement}"}[row.fate]
    return name, row.params, row.macs, student, row.student_params, row.student_macs

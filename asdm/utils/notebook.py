"""Small HTML tables for notebooks; all text in them is escaped."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape

TABLE = "border-collapse:collapse;font-variant-numeric:tabular-nums"


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], note: str = "", left: Collection[int] = (0,)
) -> str:
    """A table with a caption; the columns `left` are text, the others numbers."""

    def row(cells: Sequence[object], kind: str) -> str:
        return "".join(
            f'<{kind} style="padding:2px 10px 2px 0;text-align:{"left" if i in left else "right"}">'
            f"{escape(str(cell))}</{kind}>"
            for i, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    after = f"<p>{escape(note)}</p>" if note else ""
    return (
        f'<div><p><b>{escape(caption)}</b></p><table style="{TABLE}"><thead><tr>{row(head, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table>{after}</div>"
    )


def bar(share: float, cells: int = 20) -> str:
    """A bar of block characters, full at 1."""
    eighths = round(8 * cells * min(max(share, 0.0), 1.0))
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]

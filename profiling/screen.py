"""Tables of a report on a terminal."""

from __future__ import annotations

from rich.table import Table

from microturn.profiling.tables import Table as Cells

WIDTH = 100


def on_screen(cells: Cells) -> Table:
    """Numbers to the right, as on paper."""
    table = Table(box=None, header_style="bold", caption=cells.note, caption_justify="left")
    for index, title in enumerate(cells.head):
        table.add_column(title, justify="right" if index else "left")
    for row in cells.rows:
        table.add_row(*row)
    return table

"""The beginning of a tick: where every line stands, read from its slot's cursors."""

from microturn.kernels.open_lines.op import open_lines
from microturn.kernels.open_lines.reference import LineState, OpenedLines, Opening

__all__ = ["LineState", "OpenedLines", "Opening", "open_lines"]

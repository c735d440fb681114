"""The console on which tables of results are printed."""

from __future__ import annotations

from rich.console import Console

PIPE_WIDTH = 120


def result_console() -> Console:
    """Standard output; a pipe or a file has no width of its own, so tables there are not squeezed into 80 columns."""
    screen = Console(soft_wrap=True)
    return screen if screen.is_terminal else Console(soft_wrap=True, width=PIPE_WIDTH)

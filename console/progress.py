"""Progress bars for long work: what is done, how much is left, and for how long."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True, soft_wrap=True)


@contextlib.contextmanager
def progress_bar(title: str, total: int | None, done: int = 0, show: bool = True) -> Iterator[Callable[..., None]]:
    """Show a bar on stderr; yields `advance(n=1, note="")`.

    total: steps in all (None: unknown), done: steps finished before (a resumed run).
    On something that is no terminal nothing is drawn but the last state.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not show, refresh_per_second=4) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(steps: int = 1, note: str | None = None) -> None:
            bar.update(task, advance=steps, **({} if note is None else {"note": note}))

        yield advance

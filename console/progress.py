"""Progress bars for long work, with the remaining time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from console.errors import process_group

console = Console(stderr=True, soft_wrap=True)


@functools.cache
def say_once(text: str) -> None:
    """Print a note only once, and only in the first process of a group."""
    group = process_group()
    if group is None or group.get_rank() == 0:
        console.print(text, markup=False)


@contextlib.contextmanager
def progress_bar(
    title: str, total: int | None, done: int = 0, show: bool = True, keep: bool = True
) -> Iterator[Callable[..., None]]:
    """Show a bar on stderr, below an existing one; yields `advance(n=1, note="")`.

    total: steps in all (None: unknown). done: steps finished before (a resumed run). keep: leave the bar on the screen
    at the end. Without a terminal only the last state is printed.
    """
    show = show and (keep or console.is_terminal)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    options = {"disable": not show, "refresh_per_second": 4, "transient": not keep}
    with Progress(*columns, console=console, **options) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(steps: int = 1, note: str | None = None) -> None:
            bar.update(task, advance=steps, **({} if note is None else {"note": note}))

        yield advance


@contextlib.contextmanager
def transfer_bar(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar of bytes on stderr; yields `show(done, total)`, total None if it is unknown.

    Without a terminal only the last state is printed.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as bar:
        task = bar.add_task(title, total=None, visible=False)

        def show(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        yield show

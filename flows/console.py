"""How a run looks in a terminal, and in a log file when there is none."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

if TYPE_CHECKING:  # the real import costs every --help half a second
    from tasks.stage import Progress as RunProgress
    from tasks.stage import RunResult

QUIET_EVERY_S = 15.0
"""Without a terminal one line this often, so that a log stays readable."""


def in_words(seconds: float) -> str:
    """Return a duration for people: 45 s, 12 min, 3.4 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def size_in_words(size_bytes: float) -> str:
    """Return a size for people, in powers of 1,024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


class ConsoleReporter:
    """Progress with ETA and one summary a stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._said = 0.0

    def started(self, stage: str, planned: int, fresh: int) -> None:
        self._console.print(f"[bold]{stage}[/]  {planned:,} to do, {fresh:,} already done", highlight=False)
        self._said = time.monotonic()
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("  {task.completed:,.0f}/{task.total:,.0f}"),
                BarColumn(bar_width=32),
                TextColumn("{task.description}"),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=planned)

    def progress(self, stage: str, progress: "RunProgress") -> None:
        text = f"{progress.items_per_s:.1f} items/s, {in_words(progress.eta_s)} left"
        others = ", ".join(f"{n} {status}" for status, n in progress.counts.items() if status != "ok")
        text = f"{text}, {others}" if others else text
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=progress.done, description=text)
        elif time.monotonic() - self._said > QUIET_EVERY_S:
            self._said = time.monotonic()
            self._console.print(f"  {progress.done:,}/{progress.planned:,}  {text}", highlight=False)

    def message(self, stage: str, text: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)
        elif self._bar is None and time.monotonic() - self._said > QUIET_EVERY_S:
            self._said = time.monotonic()
            self._console.print(f"  {text}", highlight=False)

    def finished(self, result: "RunResult") -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None
        if not result.run_id:
            done = f", {result.fresh:,} items are up to date" if result.fresh else ""
            self._console.print(f"[bold]{result.stage}[/]  nothing to do{done}", highlight=False)
            for note in result.notes:
                self._console.print(f"  {escape(note)}", highlight=False)
            return
        counts = ", ".join(f"{result.counts[status]:,} {status}" for status in ("ok", "excluded", "failed"))
        version = f" → version {result.pin.version}" if result.pin else ""
        self._console.print(
            f"  {counts} in {in_words(result.seconds)}, {size_in_words(result.bytes_out)} written{version}",
            highlight=False,
        )
        for reason, number in result.reasons.most_common():
            self._console.print(f"    {number:,} {reason}", highlight=False)
        if result.stopped:
            self._console.print("  stopped; run again to go on from here")
        if result.error:
            self._console.print(f"  [red]{escape(result.error)}[/]", highlight=False)

    def group(self, name: str, work: Callable[[], int]) -> None:
        work()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Return a plain table; numbers are set flush right."""
    result = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        # An id that is folded cannot be copied.
        whole = column.endswith("_id") or column in ("stage", "status", "state", "version")
        result.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=whole)
    for row in rows:
        result.add_row(*(f"{cell:,}" if isinstance(cell, int) else escape(str(cell)) for cell in row))
    return result

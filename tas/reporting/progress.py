"""What a run shows while it runs: bars with the time left (on a terminal, on stderr), and events for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tas.reporting.numbers import duration
from tas.training import Progress as TrainingProgress

Bar = Callable[[int, int, str], None]
_SECONDS_TO_FIRST_LINE, _SECONDS_BETWEEN_LINES = 5.0, 30.0


class Events:
    """Scalars and width histograms in TensorBoard's format; nothing is written before the first value."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: Any = None

    @property
    def _writer(self) -> Any:
        if self._opened is None:
            from torch.utils.tensorboard import SummaryWriter

            self._opened = SummaryWriter(str(self._folder))
        return self._opened

    def training(self, stage: str, progress: TrainingProgress) -> None:
        self._writer.add_scalar(f"{stage}/loss", progress.loss, progress.step)
        self._writer.add_scalar(f"{stage}/lr", progress.lr, progress.step)

    def search(self, row: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        """A row of the course: its numbers, and how much of each choice's size is expected to be kept."""
        for name, value in row.items():
            if isinstance(value, int | float) and name not in ("step", "steps", "epoch"):
                self._writer.add_scalar(f"search/{name}", value, row["step"])
        if expected := row.get("expected"):
            import torch

            parts = {name: value / sizes[name] for name, value in expected.items()}
            self._writer.add_histogram("search/part kept", torch.tensor(list(parts.values())), row["step"])
            for name, part in parts.items():
                self._writer.add_scalar(f"part kept/{name}", part, row["step"])

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()


class Display:
    """Lines on stderr: bars with the time left on a terminal, now and then a line elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, stage: str) -> Iterator[Bar]:
        """Call the value with step, steps and a note. Another number of steps is another piece of work: what is left is
        reckoned anew."""
        if not self.console.is_terminal:
            yield self._lines(stage)
            return
        note = TextColumn("{task.fields[note]}", style="dim")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), note, console=self.console, transient=True) as shown:
            task = shown.add_task(stage, total=None, note="")

            def show(step: int, steps: int, text: str) -> None:
                if shown.tasks[0].total not in (None, steps):
                    shown.reset(task)
                shown.update(task, completed=step, total=steps, note=text)

            yield show

    def _lines(self, stage: str) -> Bar:
        """A first line after a few seconds, then one every `_SECONDS_BETWEEN_LINES`."""
        started, first, due, known = time.monotonic(), 0, _SECONDS_TO_FIRST_LINE, 0

        def show(step: int, steps: int, text: str) -> None:
            nonlocal started, first, due, known
            if known not in (0, steps):
                started, first, due = time.monotonic(), 0, _SECONDS_TO_FIRST_LINE
            known = steps
            first = first or step  # a stage that is taken up again does not begin at 0
            passed = time.monotonic() - started
            if passed < due or step <= first:
                return
            due = passed + _SECONDS_BETWEEN_LINES
            left = duration(passed / (step - first) * (steps - step))
            self.say(f"{stage}: step {step} of {steps}, about {left} left" + (f", {text}" if text else ""))

        return show

"""What the demo shows as it goes, and what was not as it must be."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.status import Status


class Report:
    """The demo's page: headings, drawings, checks. On a terminal in colour and moving, else plain lines."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.failures: list[str] = []
        self._moving: Status | None = None
        self._started_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._started_s

    def heading(self, text: str) -> None:
        """Begin a part."""
        self.console.print(f"\n[bold cyan]{escape(text)}[/]")

    def show(self, what: RenderableType) -> None:
        """Show a drawing, a table or marked-up text."""
        self.console.print(what)

    def check(self, good: bool, text: str) -> None:
        """Show that something is as it must be; or that it is not, and remember it."""
        mark = "[green]✓[/]" if good else "[bold red]✗[/]"
        self.console.print(f" {mark} {escape(text)}", soft_wrap=True)
        if not good:
            self.failures.append(text)

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """Show a moving line while the block runs; not on a terminal, say once what is going on."""
        if not self.console.is_terminal:
            self.console.print(f" … {escape(text)}")
            yield
            return
        with Status(escape(text), console=self.console) as moving:
            self._moving = moving
            try:
                yield
            finally:
                self._moving = None

    def now(self, text: str) -> None:
        """Change the moving line, if there is one."""
        if self._moving is not None:
            self._moving.update(escape(text))

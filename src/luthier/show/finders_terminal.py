"""What the finders found: loss over a rising learning rate, and speed over rising batch sizes, as bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from luthier.show.console import bar, open_console, symbol
from luthier.show.words import number_text

if TYPE_CHECKING:
    from luthier.training.finders import BatchSizes, LrRange

_LINES = 24
_BAR = 40


def print_lr_range(found: LrRange, console: Console | None = None) -> None:
    """The loss over the learning rate, the suggested one marked, and what to do with it."""
    console = open_console() if console is None else console
    points = list(zip(found.lrs, found.losses, strict=True))
    shown = points[:: max(1, -(-len(points) // _LINES))]
    top = max((loss for _, loss in shown), default=1.0)
    nearest = min(shown, key=lambda point: abs(point[0] - (found.suggestion or 0.0)), default=None)
    console.print(Text(f"{'lr':>10}  {'loss':>9}", style="dim"))
    for point in shown:
        marked = found.suggestion is not None and point == nearest
        _line(console, f"{point[0]:>10.2e}  {number_text(point[1]):>9}", point[1] / top, marked)
    for told in _advice(found):
        console.print(Text(told), soft_wrap=True)


def print_batch_sizes(found: BatchSizes, console: Console | None = None) -> None:
    """Training speed of each batch size, the suggested one marked."""
    console = open_console() if console is None else console
    top = max(found.examples_per_s, default=1.0)
    console.print(Text(f"{'batch size':>10}  {'examples/s':>10}", style="dim"))
    for size, speed in zip(found.sizes, found.examples_per_s, strict=True):
        _line(console, f"{size:>10,}  {speed:>10,.0f}", speed / top, size == found.suggestion)
    console.print(Text(f"the largest that fits: {found.largest:,} (ended by {found.limit})"), soft_wrap=True)
    told = f"suggested batch size: {found.suggestion:,}, the smallest that reaches 90% of the best speed"
    console.print(Text(told), soft_wrap=True)


def _line(console: Console, text: str, share: float, marked: bool) -> None:
    drawn = bar(share, symbol(console, "━", "#"), " ", _BAR)
    end = (f"  {symbol(console, '★', '*')} suggested", "bold green") if marked else ""
    console.print(Text.assemble(text, "  ", (drawn, "cyan"), end), soft_wrap=True)


def _advice(found: LrRange) -> list[str]:
    if found.suggestion is None:
        told = ["the loss never fell in this range: check the data and the loss, or try another range"]
    else:
        told = [f"suggested lr: {found.suggestion:.2e}, where the loss falls fastest per factor of lr"]
    return [*told, f"the loss leaves for good at lr {found.diverges_at:.2e}"] if found.diverges_at else told

"""The health card of a check-up on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from luthier.show.console import open_console, symbol

if TYPE_CHECKING:
    from luthier.doctor.checkup.card import HealthCard, Organ

STYLES = {"green": "green", "amber": "yellow", "red": "bold red", "could not look": "dim"}


def print_health_card(card: HealthCard, console: Console | None = None) -> None:
    """One line per organ, its remedy below it, and what the whole comes to."""
    console = open_console() if console is None else console
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    sign = symbol(console, "●", "*")
    for organ in card.organs:
        state = Text.assemble((f"{sign} {organ.state}", STYLES[organ.state]))
        table.add_row(Text(organ.name, style="bold"), state, _words(organ))
    console.print(table)
    counts = {state: sum(organ.state == state for organ in card.organs) for state in STYLES}
    told = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    suggested = "".join(f"; suggested {name}={value:.2g}" for name, value in card.suggested.items())
    console.print(
        Text(f"{card.task}: {told}{suggested} ({card.took_s:.0f} s)", style=STYLES[card.worst]), soft_wrap=True
    )


def _words(organ: Organ) -> Text:
    text = Text(organ.reason)
    if organ.remedy:
        text.append(f"\n{organ.remedy}", style="italic")
    return text

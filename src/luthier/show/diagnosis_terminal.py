"""A diagnosis on the terminal, in colours where it has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from luthier.show.console import open_console, symbol
from luthier.show.diagnosis_layout import Line, Role, Span, lay_out

if TYPE_CHECKING:
    from luthier.doctor.findings import Diagnosis

STYLES: dict[Role, str] = {
    "critical": "bold white on red",
    "warning": "bold black on yellow",
    "info": "bold cyan",
    "healthy": "bold green",
    "symptom": "bold",
    "label": "bold",
    "text": "",
    "dim": "dim",
    "bullet": "dim",
    "added": "green",
    "removed": "red",
    "kept": "",
}


def print_diagnosis(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Print a diagnosis; plain lines when the output is not a terminal.

    Args:
        diagnosis: what was found.
        console: where to write; standard output when None.
    """
    console = open_console() if console is None else console
    dot = symbol(console, "•", "*")
    for line in lay_out(diagnosis, min(console.width, 110)):
        console.print(_styled(line, dot), soft_wrap=True)


def _styled(line: Line, dot: str) -> Text:
    return Text.assemble(*((_text(span, dot), STYLES[span.role]) for span in line))


def _text(span: Span, dot: str) -> str:
    if span.role in ("critical", "warning") and span.text.isupper():
        return f" {span.text} "
    return span.text.replace("*", dot) if span.role == "bullet" else span.text

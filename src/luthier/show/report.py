"""The report: one HTML file that needs nothing else, for a tuning (Study) or a single training (Record)."""

from __future__ import annotations

import time
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from luthier import __version__
from luthier.errors import LuthierError
from luthier.files import write_atomic
from luthier.record import Record
from luthier.show.html import embedded_json, text
from luthier.show.report_data import record_data, study_data
from luthier.show.report_record import record_sections
from luthier.show.report_study import study_sections

if TYPE_CHECKING:
    from luthier.tuning.study import Study


def write_report(source: Study | Record, path: str | Path) -> Path:
    """Write a report that opens in any browser, offline, on a desk or a phone, and prints.

    Args:
        source: a study, finished or still going on, or the record of one training.
        path: the HTML file; replaced as a whole.

    Returns:
        The path.

    Raises:
        LuthierError: the file cannot be written; an old one is untouched.
    """
    if isinstance(source, Record):
        title = f"{source.task.get('name', source.path.name)}: training report"
        page = render(title, record_sections(source), record_data(source))
    else:
        page = render(f"{source.name}: tuning report", study_sections(source), study_data(source))
    path = Path(path)
    try:
        write_atomic(path, page)
    except OSError as error:
        raise LuthierError(
            f"the report {path} cannot be written ({error.strerror or error}): choose another path for it"
        ) from error
    return path


def render(title: str, body: str, data: object) -> str:
    """The whole page from its parts.

    Args:
        title: plain text.
        body: HTML, escaped by those who made it.
        data: what the charts are drawn from.
    """
    return Template(_read("templates", "report.html")).substitute(
        title=text(title),
        body=body,
        data=embedded_json(data),
        css=_read("templates", "report.css"),
        js=_read("templates", "report.js"),
        echarts=_read("vendor", "echarts", "echarts.min.js"),
        version=text(__version__),
        written=text(time.strftime("%Y-%m-%d %H:%M")),
    )


def _read(*names: str) -> str:
    return files("luthier.show").joinpath(*names).read_text(encoding="utf-8")

"""Pieces of HTML: every text that comes from outside is escaped here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from luthier.files import to_json


def text(value: object) -> str:
    """Any value as HTML text, safe in elements and in quoted attributes.

    >>> text("<b> & co")
    '&lt;b&gt; &amp; co'
    """
    return escape(str(value), quote=True)


def embedded_json(data: Any) -> str:
    """JSON for a script element: no string in it can end the element or open a comment.

    >>> embedded_json({"name": "</script>"})
    '{"name": "\\\\u003c/script\\\\u003e"}'
    """
    escaped = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
    return "".join(escaped.get(sign, sign) for sign in to_json(data))


def cell(content: object, css: str = "", sort: float | str | None = None) -> str:
    """A table cell; `sort` is what the column is sorted by when that is not the text."""
    key = "" if sort is None else f' data-sort="{text(sort)}"'
    return f"<td{_css(css)}{key}>{text(content)}</td>"


def bar(share: float, css: str = "") -> str:
    """A table cell with a share as a bar.

    >>> bar(0.5)
    '<td class="bar"><i style="width:50.0%"></i></td>'
    """
    return f'<td{_css(f"bar {css}".strip())}><i style="width:{100 * share:.1f}%"></i></td>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], css: str = "", row_css: Sequence[str] = ()) -> str:
    """A table that scrolls sideways when the screen is narrow.

    Args:
        head: names of the columns; a leading ">" aligns a column's name right, as numbers are.
        rows: cells made by `cell`.
        css: classes of the table; "sortable" lets a click on a column's name sort by it.
        row_css: a class for each row.
    """
    names = "".join(f"<th{_css('number' if name[:1] == '>' else '')}>{text(name.lstrip('>'))}</th>" for name in head)
    styles = [*row_css]
    body = "".join(
        f"<tr{_css(styles[index] if index < len(styles) else '')}>{''.join(cells)}</tr>"
        for index, cells in enumerate(rows)
    )
    return f'<div class="scroll"><table{_css(css)}><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def section(title: str, *blocks: str, note: str = "", css: str = "") -> str:
    """A card with a title; an empty one when no block has content is left out."""
    content = "".join(blocks)
    if not content:
        return ""
    told = f'<p class="note">{text(note)}</p>' if note else ""
    return f'<section class="card {text(css)}"><h2>{text(title)}</h2>{told}{content}</section>'


def chart(name: str, label: str, css: str = "") -> str:
    """The place of a chart that report.js draws under this name."""
    return f'<div class="chart {text(css)}" data-chart="{text(name)}" role="img" aria-label="{text(label)}"></div>'


def tile(label: str, value: str, note: str = "", css: str = "") -> str:
    """One figure, large, with its name above and what to know about it below."""
    below = f"<small>{text(note)}</small>" if note else ""
    return f'<div class="tile {text(css)}"><span>{text(label)}</span><b>{text(value)}</b>{below}</div>'


def tiles(*each: str) -> str:
    """Figures side by side."""
    return f'<div class="tiles">{"".join(each)}</div>'


def code(caption: str, content: str) -> str:
    """A block to copy."""
    button = '<button type="button" class="copy">Copy</button>'
    return f'<figure class="code"><figcaption>{text(caption)}{button}</figcaption><pre>{text(content)}</pre></figure>'


def listed(items: Iterable[str], tag: str = "ul") -> str:
    """A list of pieces of HTML; nothing for no items."""
    content = "".join(f"<li>{item}</li>" for item in items)
    return f"<{tag}>{content}</{tag}>" if content else ""


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Names and values in two columns."""
    return f'<dl class="facts">{"".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs)}</dl>'


def _css(names: str) -> str:
    return f' class="{text(names)}"' if names else ""

"""A page of text, tables and figures in one self-contained HTML file."""

import base64
import html
import importlib.resources
import math
import pathlib
import string
from collections.abc import Collection, Sequence

from googlenet_flax.reports.style import SHOWN_WIDTH_PIXELS, plain_text
from googlenet_flax.runtime.files import OUT_HINT, replace_file


class Number(str):
    """Text of a number, which a table aligns to the right."""


Cell = str | None  # None is shown as a dash.


def number(value: float | None, form: str = ",") -> Number | None:
    """Formats a number; returns None for None and NaN."""
    is_known = value is not None and not math.isnan(value)
    return Number(format(value, form)) if is_known else None


def percent(fraction: float | None) -> Number | None:
    """Formats a fraction in percent; returns None for None and NaN."""
    return number(fraction, ".2%")


class Page:
    """A page that is built part by part; all text is escaped."""

    def __init__(self, title: str):
        self._title = title
        self._parts: list[str] = []
        self._sections: list[str] = []
        self.pictures: dict[str, bytes] = {}  # PNGs by the names of their files.

    def section(self, title: str) -> None:
        """Begins a section."""
        self._sections.append(title)
        self._parts.append(f'<h2 id="section-{len(self._sections)}">{_text(title)}</h2>')

    def heading(self, title: str) -> None:
        """Begins a part of a section."""
        self._parts.append(f"<h3>{_text(title)}</h3>")

    def text(self, text: str) -> None:
        """Adds a paragraph."""
        self._parts.append(f"<p>{_text(text)}</p>")

    def missing(self, text: str) -> None:
        """Adds a paragraph that says what cannot be shown, and why."""
        self._parts.append(f'<p class="missing">{_text(text)}</p>')

    def figure(self, name: str, png: bytes, *, caption: str, alt: str) -> None:
        """Adds a figure, which is also written as NAME.png beside the page.

        The caption is below the figure; `alt` is for readers who do not see it.
        """
        self.pictures[f"{name}.png"] = png
        data = base64.b64encode(png).decode()
        self._parts.append(
            f'<figure id="{_text(name)}"><img src="data:image/png;base64,{data}" '
            f'width="{SHOWN_WIDTH_PIXELS}" alt="{_text(alt)}">'
            f"<figcaption>{_text(caption)}</figcaption></figure>"
        )

    def table(
        self,
        header: Sequence[str],
        rows: Collection[Sequence[Cell]],
        *,
        caption: str,
        folded: bool = False,
    ) -> None:
        """Adds a table, which scrolls by itself if it is wider than the screen.

        The first cell of a row is its name. A folded table shows only its caption until
        that is clicked.
        """
        columns = zip(header, *rows, strict=True)
        numeric = [any(isinstance(cell, Number) for cell in column) for column in columns]
        head = _row(header, ['th scope="col"'] * len(header), numeric)
        tags = ['th scope="row"', *["td"] * (len(header) - 1)]
        body = "\n".join(_row(row, tags, numeric) for row in rows)
        label = _text(caption)
        table = (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">\n'
            f"<table>{'' if folded else f'<caption>{label}</caption>'}\n"
            f"<thead>{head}</thead>\n<tbody>\n{body}\n</tbody></table></div>"
        )
        folded_table = f"<details><summary>{label}</summary>\n{table}\n</details>"
        self._parts.append(folded_table if folded else table)

    def to_html(self) -> str:
        """Returns the page as HTML."""
        parts = self._parts.copy()
        if self._sections:
            links = "".join(
                f'<li><a href="#section-{number}">{_text(title)}</a></li>'
                for number, title in enumerate(self._sections, start=1)
            )
            navigation = f'<nav aria-label="Sections"><ul>{links}</ul></nav>'
            first = next(i for i, part in enumerate(parts) if part.startswith("<h2"))
            parts.insert(first, navigation)
        title = _text(self._title)
        template = importlib.resources.files("googlenet_flax.reports") / "template.html"
        page = string.Template(template.read_text(encoding="utf-8"))
        return page.substitute(title=title, body="\n".join([f"<h1>{title}</h1>", *parts]))

    def write(self, file: pathlib.Path, prefix: str = "") -> None:
        """Writes the figures and then the page, each file completely or not at all.

        The names of the figures' files begin with `prefix`.

        Raises:
          UserError: A file cannot be written.
        """
        for name, data in self.pictures.items():
            replace_file(file.with_name(prefix + name), data, OUT_HINT)
        replace_file(file, self.to_html().encode(), OUT_HINT)


def _row(row: Sequence[Cell], tags: Sequence[str], numeric: Sequence[bool]) -> str:
    """Returns a row of a table, each cell in its tag."""
    html_row = ""
    for cell, tag, is_number in zip(row, tags, numeric, strict=True):
        align = ' class="number"' if is_number else ""
        html_row += f"<{tag}{align}>{_text('-' if cell is None else cell)}</{tag[:2]}>"
    return f"<tr>{html_row}</tr>"


def _text(text: str) -> str:
    return html.escape(plain_text(text))

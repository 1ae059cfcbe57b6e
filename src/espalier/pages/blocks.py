"""What a page is made of. Everything is text: nothing is taken for markup."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class Cell(NamedTuple):
    """An entry of a table that is more than text. kind: a verdict, 'holds' or 'fails', or a row's heading, 'head'."""

    text: str
    kind: str = ""
    link: str = ""


class Text(NamedTuple):
    """A paragraph. kind: '' or 'source', in small print."""

    text: str
    kind: str = ""


class Table(NamedTuple):
    """header: of the columns. rows: entries, text or `Cell`; the first of a row is its heading. numbers: stand to the right."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    numbers: bool = True


class Figure(NamedTuple):
    """A picture, and what it is drawn from.

    png: its bytes, or the name of a file beside the page. says: what it shows, in a sentence, for who cannot see it. data: a
    header and rows, that the page gives as a file. wide: does it want the whole width?
    """

    png: bytes | str
    title: str
    says: str
    data: tuple[Sequence[str], Sequence[Sequence[Any]]] | None = None
    wide: bool = True

    @property
    def name(self) -> str:
        """Of the file of its data."""
        letters = "".join(letter if letter.isalnum() else " " for letter in self.title.lower())
        return "-".join(letters.split()) + ".csv"

    @property
    def csv(self) -> str:
        """That file."""
        header, rows = self.data or ((), ())
        return csv_of(header, rows)


class Example(NamedTuple):
    """One of a gallery. png: its picture, or None; says: what it is; lines: what is said of it."""

    png: bytes | None
    says: str
    lines: Sequence[str]


class Gallery(NamedTuple):
    """Examples beside each other."""

    title: str
    examples: Sequence[Example]


class Details(NamedTuple):
    """What opens when it is asked for: text as it was written."""

    summary: str
    text: str


Block = Text | Table | Figure | Gallery | Details


class Section(NamedTuple):
    """anchor: by which it is linked. verdict: 'holds', 'fails', or ''."""

    title: str
    blocks: Sequence[Block]
    anchor: str
    verdict: str = ""


class Page(NamedTuple):
    """title: of the window; heading: of the page; lead: its first paragraph. contents: show links to the sections?"""

    title: str
    heading: str
    lead: str
    sections: Sequence[Section]
    blocks: Sequence[Block] = ()
    """What stands before the sections."""
    contents: bool = True


def csv_of(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """Comma-separated values, RFC 4180."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(list(header))
    writer.writerows(list(row) for row in rows)
    return file.getvalue()

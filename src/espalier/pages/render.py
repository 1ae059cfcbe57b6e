"""Blocks as one HTML file: no script, no network; opened from a mail it looks as it does from a server."""

from __future__ import annotations

import base64
import itertools
import re
from importlib import resources
from typing import Any

from espalier.pages.blocks import Page


def html(page: Page) -> str:
    """The whole document."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_template), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["source"] = _source
    environment.filters["csv_source"] = lambda text: "data:text/csv;base64," + _base64(text.encode())
    environment.tests["of"] = lambda block, name: type(block).__name__ == name
    return environment.get_template("page.html").render(page=_linked(page), style=_template("style.css"))


def _linked(page: Page) -> Page:
    """With anchors as an id may be: no spaces, and none twice."""
    taken, sections = {"main"}, []
    for section in page.sections:
        plain = re.sub(r"[^\w.-]+", "-", section.anchor)
        again = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
        taken.add(anchor := next(name for name in again if name not in taken))
        sections.append(section._replace(anchor=anchor))
    return page._replace(sections=sections)


def _template(name: str) -> str:
    return (resources.files("espalier.pages") / "templates" / name).read_text(encoding="utf-8")


def _source(png: Any) -> str:
    """Of an `img`: the bytes themselves, or a file beside the page."""
    return png if isinstance(png, str) else "data:image/png;base64," + _base64(png)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")

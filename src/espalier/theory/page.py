"""The page of `espalier theory`: a table of verdicts, then each claim with its figures and pictures. One HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from espalier.theory.claims import Line, plain

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100%; font-size: 14px }
td, th { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top }
.holds { color: #00693e } .fails { color: #b22222; font-weight: bold }
img { max-width: 100%; margin: .5rem 0 } .source, summary { color: #666; font-size: 14px }
pre { font-size: 12px; overflow-x: auto; background: #f6f6f6; padding: .6rem }
"""


def page(lines: Sequence[Line], pictures: Mapping[str, Sequence[str]], quick: bool) -> str:
    """The whole document. pictures: file names beside the page, by claim."""
    held = sum(line.finding.verdict == "holds" for line in lines)
    heading = f"{held} of {len(lines)} claims hold" + (" (quick run: fewer draws, smaller grids)" if quick else "")
    rows = "".join(_row(line) for line in lines)
    sections = "".join(_section(line, pictures[line.name]) for line in lines)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Espalier: theory</title><style>{STYLE}</style>'
        f"<h1>The theory, checked</h1><p>{heading}. A claim holds if the discrepancy is at most the tolerance; the other "
        "side of every comparison owes nothing to the formula.</p><table><tr><th>verdict<th>claim<th>discrepancy"
        f"<th>tolerance<th>unit</tr>{rows}</table>{sections}</html>\n"
    )


def _row(line: Line) -> str:
    finding = line.finding
    return (
        f'<tr><td class="{finding.verdict}">{finding.verdict}<td><a href="#{line.name}">{escape(line.name)}</a>: '
        f"{escape(line.says)}<td>{finding.discrepancy:.3g}<td>{finding.tolerance:.3g}<td>{escape(finding.unit)}</tr>"
    )


def _section(line: Line, pictures: Sequence[str]) -> str:
    finding = line.finding
    images = "".join(f'<img src="{escape(name)}" alt="{escape(line.says)}">' for name in pictures)
    breaks = f"<p><b>Where it does not hold exactly:</b> {escape(finding.breaks)}</p>" if finding.breaks else ""
    figures = f"<details><summary>figures</summary><pre>{escape(_figures(finding.figures))}</pre></details>"
    return (
        f'<h2 id="{line.name}"><span class="{finding.verdict}">{finding.verdict}</span> {escape(line.says)}</h2>'
        f'<p class="source">{escape(line.name)}; source: {escape(line.source)}; {line.seconds:.1f} s</p>'
        f"<p>Compared: {escape(finding.compared)}. Discrepancy {finding.discrepancy:.3g}, tolerance {finding.tolerance:.3g} "
        f"{escape(finding.unit)}.</p>{breaks}{images}{figures if finding.figures else ''}"
    )


def _figures(figures: Mapping[str, Any]) -> str:
    return json.dumps(plain(dict(figures)), indent=1, ensure_ascii=False)

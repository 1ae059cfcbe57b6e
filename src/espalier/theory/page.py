"""The page of `espalier theory`: a table of verdicts, then each claim with its figures and pictures. One HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from espalier import pages
from espalier.theory.claims import Line, plain


def page(lines: Sequence[Line], pictures: Mapping[str, Mapping[str, str]]) -> str:
    """The whole document. pictures: by claim, the names of files beside the page, and their titles."""
    held, quick = sum(line.finding.verdict == "holds" for line in lines), sum(line.quick for line in lines)
    few = "" if not quick else "quick run" if quick == len(lines) else f"{quick} of a quick run"
    heading = f"{held} of {len(lines)} claims hold" + (f" ({few}: fewer draws, smaller grids)" if few else "")
    header = ("claim", "what it says", "verdict", "discrepancy", "tolerance", "unit")
    table = pages.Table("Verdicts", header, [_row(line) for line in lines], numbers=False)
    return pages.html(
        pages.Page(
            "Espalier: theory",
            "The theory, checked",
            f"{heading}. A claim holds if the discrepancy is at most the tolerance; the other side of every comparison owes "
            "nothing to the formula.",
            [_section(line, pictures[line.name]) for line in lines],
            [table],
            contents=False,
        )
    )


def _row(line: Line) -> list[str | pages.Cell]:
    finding = line.finding
    return [
        pages.Cell(line.name, link=f"#{line.name}"),
        line.says,
        pages.Cell(finding.verdict, finding.verdict),
        f"{finding.discrepancy:.3g}",
        f"{finding.tolerance:.3g}",
        finding.unit,
    ]


def _section(line: Line, pictures: Mapping[str, str]) -> pages.Section:
    finding = line.finding
    blocks: list[pages.Block] = [
        pages.Text(f"{line.name}; source: {line.source}; {line.seconds:.1f} s{', quick' * line.quick}", "source"),
        pages.Text(
            f"Compared: {finding.compared}. Discrepancy {finding.discrepancy:.3g}, tolerance {finding.tolerance:.3g} "
            f"{finding.unit}."
        ),
    ]
    blocks += [pages.Text(f"Where it does not hold exactly: {finding.breaks}")] if finding.breaks else []
    blocks += [pages.Figure(name, title, f"{title}: {line.says}") for name, title in pictures.items()]
    blocks += [pages.Details("Figures", _figures(finding.figures))] if finding.figures else []
    return pages.Section(line.says, blocks, line.name, finding.verdict)


def _figures(figures: Mapping[str, Any]) -> str:
    return json.dumps(plain(dict(figures)), indent=1, ensure_ascii=False)

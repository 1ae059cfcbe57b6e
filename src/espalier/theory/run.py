"""Runs the claims on processes, and keeps the page of them."""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from espalier import __version__, store
from espalier.grids.workers import follow_parent
from espalier.pictures import plots
from espalier.theory.claims import Claim, Finding, Line, Ranks, plain


def check(name: str, quick: bool) -> tuple[Finding, float]:
    """Check one claim on one thread, and how long it took. A check that raises has not shown its claim: it fails."""
    import warnings

    import torch

    from espalier.theory import catalogue

    torch.set_num_threads(1)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            finding = catalogue()[name].check(quick)
        except Exception as error:  # noqa: BLE001 - whatever it was, the other claims go on
            finding = Finding(f"not compared: {type(error).__name__}: {error}", math.nan, 0.0, "")
    return finding, time.perf_counter() - start


def run(
    names: Sequence[str], quick: bool, jobs: int, done: Callable[[int], None] = lambda count: None
) -> Iterator[Line]:
    """Lines, each as soon as it is there. done: told of every claim that ends."""
    from espalier.theory import chosen

    wanted = chosen(list(names))
    if jobs < 1:
        raise ValueError(f"expected at least 1 job, got {jobs}")
    return _lines(wanted, quick, jobs, done)


def _lines(wanted: dict[str, Claim], quick: bool, jobs: int, done: Callable[[int], None]) -> Iterator[Line]:
    ended = 0

    def count(_: Future[Any]) -> None:
        nonlocal ended
        ended += 1
        done(ended)

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(wanted)), spawn, initializer=follow_parent) as pool:
        # The page ends with what takes longest: begun first, so that no process is left alone with it.
        futures = {pool.submit(check, name, quick): wanted[name] for name in reversed(wanted)}
        for future in futures:
            future.add_done_callback(count)
        for future in as_completed(futures):
            claim, (finding, seconds) = futures[future], future.result()
            yield Line(claim.name, claim.says, claim.source, finding, seconds, quick)


def sentence(line: Line) -> str:
    """The line that `espalier theory` prints: verdict, claim, source, what was compared, discrepancy, tolerance."""
    finding = line.finding
    return (
        f"{finding.verdict}  {line.name}: {line.says} [{line.source}] | {finding.compared} | "
        f"{finding.discrepancy:.3g} (at most {finding.tolerance:.3g} {finding.unit})"
    )


Page = dict[str, tuple[Line, dict[str, str]]]
"""By claim its line, and its pictures: file name -> title."""


def begun(out: Path, names: Sequence[str]) -> Page:
    """What the page in `out` holds that goes on: one of this version; of any other nothing.

    Raises ValueError where a picture lies there that these claims would overwrite and Espalier did not draw.
    """
    for name in names:
        for path in out.glob(f"{name}-[0-9]*.png"):
            plots.check_free(path)
    try:
        written = json.loads((out / "theory.json").read_bytes())
        if written["version"] != __version__:
            return {}
        return {claim["name"]: _from_json(claim) for claim in written["claims"]}
    except (OSError, ValueError, LookupError, TypeError):  # none, or not ours to read: the page begins anew
        return {}


def drawn(line: Line, out: Path) -> dict[str, str]:
    """One PNG per picture of a claim: their names, and titles."""
    names = {}
    for index, picture in enumerate(line.finding.pictures):
        figure = plots.ranks(picture) if isinstance(picture, Ranks) else plots.curves(picture)
        plots.save(figure, out / f"{line.name}-{index + 1}.png")
        names[f"{line.name}-{index + 1}.png"] = picture.title
    return names


def write(found: Page, out: Path) -> None:
    """`theory.json` and `index.html`, the page of all of it in the order of the catalogue. Each is replaced atomically."""
    from espalier.theory.page import page

    ordered = _ordered(found)
    lines, pictures = [line for line, _ in ordered], {line.name: names for line, names in ordered}
    store.write_bytes(out / "theory.json", (text(found) + "\n").encode())
    store.write_bytes(out / "index.html", page(lines, pictures).encode())


def text(found: Page) -> str:
    """As `theory.json` has it."""
    claims = [as_json(line, pictures) for line, pictures in _ordered(found)]
    quick = any(line.quick for line, _ in found.values())
    return json.dumps({"version": __version__, "quick": quick, "claims": claims}, indent=1, ensure_ascii=False)


def _ordered(found: Page) -> list[tuple[Line, dict[str, str]]]:
    """As the catalogue has them, and what it does not know after that."""
    from espalier.theory import catalogue

    return [found[name] for name in sorted(found, key=[*catalogue(), *found].index)]


def _from_json(claim: dict[str, Any]) -> tuple[Line, dict[str, str]]:
    gap = math.nan if claim["discrepancy"] is None else float(claim["discrepancy"])
    finding = Finding(claim["compared"], gap, float(claim["tolerance"]), claim["unit"], claim["figures"], claim["breaks"])
    line = Line(claim["name"], claim["claim"], claim["source"], finding, float(claim["seconds"]), claim["quick"])
    return line, dict(claim["pictures"])


WRITTEN = ("theory.json", "index.html")
"""What tells the folder of a theory page."""


def as_json(line: Line, pictures: Mapping[str, str]) -> dict[str, Any]:
    finding = line.finding
    return {
        "name": line.name,
        "claim": line.says,
        "source": line.source,
        "compared": finding.compared,
        "discrepancy": plain(finding.discrepancy),
        "tolerance": plain(finding.tolerance),
        "unit": finding.unit,
        "verdict": finding.verdict,
        "breaks": finding.breaks,
        "figures": plain(finding.figures),
        "seconds": round(line.seconds, 2),
        "quick": line.quick,
        "pictures": dict(pictures),
    }

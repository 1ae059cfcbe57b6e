"""Runs the claims, each in a process of its own world: nothing that one leaves behind reaches another."""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from espalier import __version__, store
from espalier.grids.workers import follow_parent
from espalier.pictures import plots
from espalier.theory.claims import Claim, Finding, Line, Ranks, plain


def check(name: str, quick: bool) -> tuple[Finding, float]:
    """Check one claim on one thread, and how long it took. A check that raises has not shown its claim: it fails."""
    import warnings

    import pyro
    import torch

    from espalier.theory import catalogue

    torch.set_num_threads(1)
    start = time.perf_counter()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), pyro.get_param_store().scope():
        warnings.simplefilter("ignore")
        try:
            finding = catalogue()[name].check(quick)
        except Exception as error:  # noqa: BLE001 - whatever it was, the other claims go on
            finding = Finding(f"not compared: {type(error).__name__}: {error}", math.nan, 0.0, "")
    return finding, time.perf_counter() - start


def run(
    names: Sequence[str], quick: bool, jobs: int, done: Callable[[int], None] = lambda count: None
) -> Iterator[Line]:
    """Lines in the order of the page, each as soon as it and all before it are there. done: told of every claim that ends."""
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
        futures = {name: pool.submit(check, name, quick) for name in reversed(wanted)}
        for future in futures.values():
            future.add_done_callback(count)
        for name, claim in wanted.items():
            finding, seconds = futures[name].result()
            yield Line(name, claim.says, claim.source, finding, seconds)


def sentence(line: Line) -> str:
    """The line that `espalier theory` prints: verdict, claim, source, what was compared, discrepancy, tolerance."""
    finding = line.finding
    return (
        f"{finding.verdict}  {line.name}: {line.says} [{line.source}] | {finding.compared} | "
        f"{finding.discrepancy:.3g} (at most {finding.tolerance:.3g} {finding.unit})"
    )


def write(lines: Sequence[Line], out: Path, quick: bool) -> None:
    """`theory.json`, one PNG per picture, and `index.html`, the page that shows them. Each is replaced atomically."""
    from espalier.theory.page import page

    pictures: dict[str, list[str]] = {}
    for line in lines:
        pictures[line.name] = []
        for index, picture in enumerate(line.finding.pictures):
            name = f"{line.name}-{index + 1}.png"
            figure = plots.ranks(picture) if isinstance(picture, Ranks) else plots.curves(picture)
            plots.save(figure, out / name)
            pictures[line.name].append(name)
    result = {"version": __version__, "quick": quick, "claims": [as_json(line, pictures[line.name]) for line in lines]}
    store.write_bytes(out / "theory.json", (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    store.write_bytes(out / "index.html", page(lines, pictures, quick).encode())


WRITTEN = ("theory.json", "index.html")
"""What tells the folder of a theory page."""


def as_json(line: Line, pictures: Sequence[str]) -> dict[str, Any]:
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
        "pictures": list(pictures),
    }

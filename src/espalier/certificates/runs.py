"""Certificates of run folders: prune, test, write down. `verification.py` goes the way back.

RUN/certificate.json, .md, .png   the certificate with its checksum; a second look at the same split adds certificate-2.json
RUN/pruned.safetensors            the certified predictor: `load_pruned(RUN)`; absent where nothing is certified
RUN/looks.json                    every look that was taken at a calibration split for this run: its delta is spent
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espalier import runs, store
from espalier.certificates import certificate, selection
from espalier.certificates.certify import (
    Certified,
    Settings,
    candidates_of,
    check_num_data,
    decided,
    densest_first,
)
from espalier.certificates.pruning import Frozen
from espalier.certificates.unseen import check_unseen
from espalier.contracts import Data, Split
from espalier.pictures import plots
from espalier.pictures.data import Curve, Picture
from espalier.prediction.evaluation import split_of
from espalier.prediction.fit import Fit
from espalier.training.streams import find_device

WRITTEN = ("certificate.json", "certificate.md", "certificate.png", "pruned.safetensors")
"""What a certificate's folder holds."""


def certify_run(
    folders: Sequence[Path],
    settings: Settings,
    out: Path | None = None,
    *,
    again: bool = False,
    data_dir: str | None = None,
    data: str | None = None,
    device: str = "auto",
) -> tuple[Path, Certified]:
    """Certify a run, or choose among several of the same data, and write it all down in `out`, by default the run.

    again: take another look at a calibration split that was looked at for another question; the certificate then says what
    all looks together cost. The same question gets the same answer, and costs nothing. Returns the certificate's path.
    data_dir: where named sets lie. data: where the runs' own file or folder of data has moved.
    Raises ValueError, before any look, for a split that training has seen, for what makes no sense, and for a second look
    that is not declared.
    """
    if len(folders) > 1 and out is None:
        raise ValueError("expected --out DIR, a folder for the certificate of several runs")
    home = folders[0] if out is None else out
    for folder in folders:
        runs.check_finished(folder)
    with ExitStack() as held:
        held.enter_context(store.owned(home, () if out is None else WRITTEN))
        for folder in sorted({folder.resolve() for folder in folders} - {home.resolve()}):
            held.enter_context(store.owned(folder))
        return _certified(folders, settings, home, again, (data_dir, data), device)


def _certified(
    folders: Sequence[Path],
    settings: Settings,
    home: Path,
    again: bool,
    where: tuple[str | None, str | None],
    device: str,
) -> tuple[Path, Certified]:
    fits = [runs.load(folder).to(find_device(device)) for folder in folders]
    loaded = [runs.data_of(folder, *where) for folder in folders]
    if any(each.hashes != loaded[0].hashes for each in loaded):
        raise ValueError("expected runs on the same data, cut alike, to choose among")
    data, calibration = loaded[0], _calibration(loaded[0], settings.split)
    check_num_data(fits, data)
    candidates = candidates_of(fits, settings, data)
    _rehearse(candidates.points[0][1](), data, settings, len(calibration.y))
    repeated = check_unseen(data, calibration)
    asked = question(settings, data, folders)
    before = _ask(folders, asked, again)
    result = decided(candidates, calibration, settings)
    facts, path = result.facts, _free_path(home, asked)
    facts |= {
        "asked": asked,
        "looks": [short(look) for look in before],
        "runs": [os.path.relpath(folder.resolve(), home.resolve()) for folder in folders],
        "circumstances": _circumstances(folders, asked, repeated, searched(fits)),
        "device": str(fits[0].topology.positions.device),
    }
    if facts["rejected"]:
        facts["certified_run"] = certified_run(facts, fits)
    facts["hashes"] = hashes(asked)
    drawn = plots.png(plots.curves(picture(facts)))
    facts["hashes"]["picture"] = store.sha256(drawn)
    ticket = ticket_of(path)
    if result.chosen is not None:
        facts["hashes"]["pruned"] = store.write_bundle(ticket, result.chosen.bundle())
        facts["chosen"]["file_bytes"] = ticket.stat().st_size
    elif path.is_file():  # of the same question: what it certified by another version of the code
        ticket.unlink(missing_ok=True)
    store.write_bytes(path.with_suffix(".png"), drawn)
    store.write_bytes(path.with_suffix(".md"), certificate.page(facts).encode())
    store.write_bytes(path, store.canonical(store.signed(runs.plain(facts))).encode())
    return path, result


def question(settings: Settings, data: Data, folders: Sequence[Path]) -> dict[str, Any]:
    """What is asked, of which fits and examples, by content: how it is spelled does not count. spent: delta in all."""
    weights = Path(settings.weights).read_bytes() if settings.weights else b""
    return {
        "alpha": settings.alphas[0],
        "delta": settings.delta,
        "spent": settings.delta + (settings.anchor[1] if settings.anchor else 0.0),
        "examples": data.hashes[settings.split],
        "fits": [store.sha256((folder / "fit.safetensors").read_bytes()) for folder in folders],
        "settings": runs.plain(settings._replace(weights=store.sha256(weights) if weights else None)._asdict()),
    }


def _ask(folders: Sequence[Path], asked: dict[str, Any], again: bool) -> list[dict[str, Any]]:
    """Write the question into the ledger of every run, and return all looks at these examples, this one last or in its
    place. The delta is spent as soon as they may be looked at."""
    before = looks_of([looks_in(folder) for folder in folders], asked["examples"])
    if before and asked not in before and not again:
        seen = [folder for folder in folders if any(look in before for look in looks_in(folder))]
        raise ValueError(
            f"expected a first look at the {asked['settings']['split']} split, but {seen[0] / 'looks.json'} has "
            f"{len(before)} for other questions: its confidence is spent; use fresh examples, or --again to declare the "
            "union of all looks"
        )
    for folder in folders:
        own = looks_in(folder)
        ledger = {"looks": own if asked in own else [*own, asked]}
        store.write_bytes(folder / "looks.json", store.canonical(store.signed(ledger)).encode())
    return before if asked in before else [*before, asked]


def _rehearse(base: Frozen, data: Data, settings: Settings, n: int) -> None:
    """Losses and tests on two training examples: whatever cannot work shows before the calibration split is looked at."""
    if settings.weights:
        settings.read_weights(n)
    if settings.abstain:
        selection.halves(n, settings.seed)
    x, labels = data.train.x[torch.arange(2)], data.train.y[:2].numpy()
    probs = base.predict(x)
    for promise in settings._replace(weights=None).promises():
        promise.p_value(promise.risk.losses(probs, labels, probs), settings.delta)


def certified_run(facts: dict[str, Any], fits: Sequence[Fit]) -> str:
    """Which of the runs the certified predictor is of."""
    place = facts.get("member", max(facts["rejected"]))  # with confidences to abstain below, candidates are pairs
    run: str = facts["runs"][densest_first(fits)[place] if len(fits) > 1 else 0]
    return run


def searched(fits: Sequence[Fit]) -> int:
    """Validation rows, at most, on which a fit's drop rate was found."""
    return max(int(fit.record.get("drop_rate", {}).get("validation_rows", 0)) for fit in fits)


def _circumstances(folders: Sequence[Path], asked: dict[str, Any], repeated: int, looked: int) -> dict[str, Any]:
    """What speaks against the assumptions, as far as the files tell; `certificate.notes` says it in words.

    searched: validation rows that the drop rate was found on. repeated: calibration inputs that equal a training input.
    evaluated: has `espalier evaluate` scored the split before? siblings: other runs beside that were certified on these
    examples. matplotlib: the version that drew the picture.
    """
    return {
        "repeated": repeated,
        "searched": looked,
        "evaluated": scored_before(folders, asked["settings"]["split"]),
        "siblings": siblings(folders, asked),
        "matplotlib": version("matplotlib"),
    }


def siblings(folders: Sequence[Path], asked: dict[str, Any]) -> int:
    """How many other runs beside were certified on these examples. Raises what `looks_in` does for a ledger that is damaged."""
    own = {folder.resolve() for folder in folders}
    around = {other.parent for folder in own for other in folder.parent.glob("*/looks.json")} - own
    return sum(any(look["examples"] == asked["examples"] for look in looks_in(other)) for other in around)


def scored_before(folders: Sequence[Path], split: str) -> bool:
    """Has `espalier evaluate` scored this split of one of the runs?"""
    return any((folder / f"evaluation-{split}.json").is_file() for folder in folders)


def short(look: dict[str, Any]) -> dict[str, Any]:
    """What a certificate tells of a look."""
    return {name: look[name] for name in ("alpha", "delta", "spent", "settings")}


def _free_path(home: Path, asked: dict[str, Any]) -> Path:
    """certificate.json, certificate-2.json, ...: the first that is not there, or that answers the same question."""
    for number in itertools.count(1):
        path = home / f"certificate{f'-{number}' if number > 1 else ''}.json"
        if not path.is_file() or store.read_json(path).get("asked") == asked:
            return path
    raise AssertionError


def hashes(asked: dict[str, Any]) -> dict[str, str]:
    """Of what a certificate rests on, by name."""
    fits = {f"fit {place}": digest for place, digest in enumerate(asked["fits"], 1)}
    weights = {"weights": asked["settings"]["weights"]} if asked["settings"]["weights"] else {}
    return {"calibration split": asked["examples"], "code": code_digest(), **fits, **weights}


def picture(facts: dict[str, Any]) -> Picture:
    """Observed risks of the candidates that were looked at, and the levels they were held against."""
    looked = [(level, seen) for level, seen in zip(facts["grid"], facts["observed"], strict=True) if seen is not None]
    x = np.array([level for level, _ in looked])
    curves = []
    for place, entry in enumerate(facts["risks"]):
        curves += [
            Curve(entry["name"], x, np.array([seen[place] for _, seen in looked]), style="points"),
            Curve(f"alpha of {entry['name']}", x, np.full(len(x), entry["alpha"]), style="dashed"),
        ]
    reached = "nothing certified" if facts["lambda"] is None else f"certified up to lambda {facts['lambda']:g}"
    title = f"{facts['n']} {facts['split']} examples, delta {facts['delta']:g}: {reached}"
    return Picture(title, "lambda", "observed risk", tuple(curves))


def ticket_of(path: Path) -> Path:
    return path.with_name(f"{path.stem.replace('certificate', 'pruned')}.safetensors")


def looks_of(ledgers: Sequence[list[dict[str, Any]]], examples: str) -> list[dict[str, Any]]:
    """The looks at these examples in any of the ledgers, each once."""
    every = {store.canonical(look): look for ledger in ledgers for look in ledger}
    return [look for look in every.values() if look["examples"] == examples]


def looks_in(home: Path) -> list[dict[str, Any]]:
    """The looks of a run: those of its ledger, and those that its certificates answer, so that a ledger cannot be lost alone.
    Raises ValueError for one that was altered."""
    looks = ledger_in(home)
    for path in sorted(home.glob("certificate*.json")):
        asked = store.check_signed(path).get("asked")
        looks += [asked] if isinstance(asked, dict) and "examples" in asked and asked not in looks else []
    return looks


def ledger_in(home: Path) -> list[dict[str, Any]]:
    """What `looks.json` of a run says. Raises ValueError where it was altered."""
    path = home / "looks.json"
    found = store.check_signed(path).get("looks") if path.is_file() else []
    if not isinstance(found, list) or not all(isinstance(look, dict) and "examples" in look for look in found):
        raise ValueError(f"expected {path} to be a list of looks, but it was altered")
    return found


def _calibration(data: Data, split: str) -> Split:
    if split not in ("calibration", "test"):
        raise ValueError(
            f"expected the calibration split (or test), got {split!r}: {split} guided training or a choice"
        )
    return split_of(data, split)


def code_digest() -> str:
    """Of the source text of this package, both shelves included."""
    root = Path(__file__).parents[1]
    files = {file for folder in (root, root / "models", root / "inference") for file in folder.rglob("*.py")}
    return store.sha256(b"".join(file.read_bytes() for file in sorted(files)))


def load_pruned(folder: str | Path, name: str = WRITTEN[-1]) -> Frozen:
    """The certified predictor in a run folder: of several looks that of the first, or the one called `name`
    (`pruned-2.safetensors`). A certificate with a threshold speaks of the answers at that confidence or more. Raises
    FileNotFoundError where it is not there, and ValueError for a file that was altered."""
    folder = Path(folder)
    path = folder / name
    if not path.is_file():
        others = sorted(other.name for other in folder.glob("pruned*.safetensors"))
        why = f"nothing was certified there: `espalier certify {folder}`"
        if others:
            why = f"there are {', '.join(others)}: say name={others[0]!r}"
        raise FileNotFoundError(f"expected {path}, but {why}")
    facts = store.check_signed(path.with_name(f"{path.stem.replace('pruned', 'certificate')}.json"))
    if store.sha256(path.read_bytes()) != facts["hashes"]["pruned"]:
        raise ValueError(f"expected {path} as it was certified, but its SHA-256 differs: it was altered")
    return Frozen.from_bundle(runs.load(folder / facts["certified_run"]).model, store.read_bundle(path))

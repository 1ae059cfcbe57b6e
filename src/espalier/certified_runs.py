"""Certificates of run folders: prune, test, write down. `verification.py` goes the way back.

RUN/certificate.json, .md      the certificate, signed; a second look at the same split adds certificate-2.json, ...
RUN/pruned.safetensors         the certified predictor: `load_pruned(RUN)`; absent where nothing is certified
RUN/looks.json                 every look that was taken at a calibration split for this run: its delta is spent
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espalier import certificate, runs, store
from espalier.certifying import Certified, Settings, candidates_of, decided
from espalier.contracts import Data, Rows, Split
from espalier.evaluation import split_of
from espalier.pictures import Curve, Picture
from espalier.pruning import Frozen
from espalier.streams import find_device

CODE = ("pvalues", "risks", "selection", "certificate", "pruning", "certifying", "certified_runs")
"""The files whose text a certificate names: what computed it."""
SAME = 0.01
"""Share of calibration inputs that may stand in training as well before the split is refused as no split."""


def certify_run(
    folders: Sequence[Path],
    settings: Settings,
    out: Path | None = None,
    *,
    again: bool = False,
    data_dir: str | None = None,
    device: str = "auto",
) -> tuple[Path, Certified]:
    """Certify a run, or choose among several of the same data, and write it all down in `out`, by default the run.

    again: take another look at a calibration split that was looked at for another question; the certificate then says what
    all looks together cost. The same question gets the same answer, and costs nothing. Returns the certificate's path.
    Raises ValueError, before any look, for a split that training has seen, and for a second look that is not declared.
    """
    if len(folders) > 1 and out is None:
        raise ValueError("expected --out DIR, a folder for the certificate of several runs")
    home = folders[0] if out is None else out
    fits = [runs.load(folder).to(find_device(device)) for folder in folders]
    loaded = [runs.data_of(folder, data_dir) for folder in folders]
    if any(each.hashes != loaded[0].hashes for each in loaded):
        raise ValueError("expected runs on the same data, cut alike, to choose among")
    calibration = _calibration(loaded[0], settings.split)
    candidates = candidates_of(fits, settings, loaded[0])
    repeated = check_unseen(loaded[0], settings.split)
    asked = {"split": settings.split, "examples": loaded[0].hashes[settings.split], "runs": [f.name for f in folders],
             "fits": [store.sha256((f / "fit.safetensors").read_bytes()) for f in folders],
             "settings": runs.plain(settings._asdict()), "delta": settings.delta, "alpha": settings.alphas[0]}  # fmt: skip
    looks = list({store.canonical(look): look for folder in folders for look in looks_in(folder)}.values())
    before = [look for look in looks if look["examples"] == asked["examples"]]
    if before and asked not in before and not again:
        raise ValueError(
            f"expected a first look at the {settings.split} split, but {folders[0] / 'looks.json'} has {len(before)} for "
            "other questions: its confidence is spent; use fresh examples, or --again to declare the union of all looks"
        )
    if asked not in before:
        before.append(asked)
    for folder in folders:  # spent as soon as it may be looked at
        own = looks_in(folder)
        store.write_bytes(folder / "looks.json", store.canonical(own if asked in own else [*own, asked]).encode())
    result = decided(candidates, calibration, settings)
    facts, path = result.facts, _free_path(home, asked)
    facts["looks"] = [{name: look[name] for name in ("alpha", "delta", "settings")} for look in before]
    facts["asked"] = asked
    if repeated:
        facts["assumptions"].append(f"{repeated} of {facts['n']} calibration inputs equal a training input.")
    facts["runs"] = [str(folder.resolve()) for folder in folders] if out is not None else ["."]
    facts["hashes"] = {
        "calibration split": loaded[0].hashes[settings.split],
        "code": code_digest(),
        **{f"fit of {f.resolve().name}": digest for f, digest in zip(folders, asked["fits"], strict=True)},
    }
    if settings.weights:
        facts["hashes"]["weights"] = store.sha256(Path(settings.weights).read_bytes())
    ticket = ticket_of(path)
    if result.chosen is not None:
        facts["hashes"]["pruned"] = store.write_bundle(ticket, result.chosen.bundle())
        facts["chosen"]["file_bytes"] = ticket.stat().st_size
    else:
        ticket.unlink(missing_ok=True)
    store.write_bytes(path.with_suffix(".md"), certificate.page(facts).encode())
    store.write_bytes(path, store.canonical(store.signed(runs.plain(facts))).encode())
    return path, result


def _free_path(home: Path, asked: dict[str, Any]) -> Path:
    """certificate.json, certificate-2.json, ...: the first that is not there, or that answers the same question."""
    for number in itertools.count(1):
        path = home / f"certificate{f'-{number}' if number > 1 else ''}.json"
        if not path.is_file() or store.read_json(path).get("asked") == asked:
            return path
    raise AssertionError


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


def looks_in(home: Path) -> list[dict[str, Any]]:
    path = home / "looks.json"
    found: list[dict[str, Any]] = store.read_json(path) if path.is_file() else []
    return found


def _calibration(data: Data, split: str) -> Split:
    if split not in ("calibration", "test"):
        raise ValueError(
            f"expected the calibration split (or test), got {split!r}: {split} guided training or a choice"
        )
    return split_of(data, split)


def check_unseen(data: Data, split: str) -> int:
    """Number of examples of the split whose input stands in training or validation too, to the bit. Raises ValueError where
    it is more than a hundredth of them. Of a folder of images nothing is compared: its parts are different files."""
    own = getattr(data, split)
    if not isinstance(own.x, Tensor) or not isinstance(data.train.x, Tensor):
        return 0
    seen = {key for part in (data.train, data.validation) for key in _keys(part.x)}
    repeated = sum(key in seen for key in _keys(own.x))
    if repeated > SAME * len(own.y):
        raise ValueError(
            f"expected a {split} split that training has not seen, but {repeated} of its {len(own.y)} inputs are training "
            "or validation inputs: a certificate would be worthless; set fresh examples aside"
        )
    return repeated


def _keys(x: Rows) -> list[bytes]:
    rows = torch.as_tensor(x[torch.arange(len(x))]).contiguous().numpy().reshape(len(x), -1)
    return [hashlib.sha256(row.tobytes()).digest() for row in rows]


def code_digest() -> str:
    """Of the source text that computes certificates."""
    folder = Path(__file__).parent
    return store.sha256(b"".join((folder / f"{name}.py").read_bytes() for name in CODE))


def load_pruned(folder: str | Path, name: str = "pruned.safetensors") -> Frozen:
    """The certified predictor in a run folder."""
    folder = Path(folder)
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"expected {path}, but nothing was certified there: `espalier certify {folder}`")
    facts = store.check_signed(path.with_name(f"{path.stem.replace('pruned', 'certificate')}.json"))
    return Frozen.from_bundle(runs.load(folder / facts["runs"][0]).model, store.read_bundle(path))

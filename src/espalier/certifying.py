"""From a run to its certificate: prune, test, write down. `verification.py` goes the way back.

RUN/certificate.json, .md      the certificate, signed; a second look at the same split adds certificate-2.json, ...
RUN/pruned.safetensors         the certified predictor: `load_pruned(RUN)`; absent where nothing is certified
RUN/looks.json                 every look that was taken at a calibration split for this run: its delta is spent
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier import certificate, pruning, risks, runs, selection, store
from espalier.certificate import Decision, Promise
from espalier.contracts import Data, Rows, Split
from espalier.evaluation import split_of
from espalier.fit import Fit, How
from espalier.pictures import Curve, Picture
from espalier.pruning import By, Frozen, Structure
from espalier.streams import find_device

CODE = ("pvalues", "risks", "selection", "certificate", "pruning", "certifying")
"""The files whose text a certificate names: what computed it."""
SAME = 0.01
"""Share of calibration inputs that may stand in training as well before the split is refused as no split."""


class Settings(NamedTuple):
    """What is asked of a certificate: all that it depends on besides the run and the data.

    risks, alphas: promises, in one order; tests: "" for the risk's own p-value. predict, num_samples: the predictor. by,
    structure, biases: the family (`pruning.family`). step: between pruning fractions. procedure: of `selection.rejected`.
    anchor: alpha and delta of a certificate of the unpruned error, for a risk without labels. weights: an .npy file of
    dQ/dP for each calibration example, at most weight_bound. seed: of redraws and of the order of the examples.
    """

    risks: tuple[str, ...] = ("error",)
    alphas: tuple[float, ...] = (0.05,)
    tests: tuple[str, ...] = ("",)
    delta: float = 0.05
    split: str = "calibration"
    predict: How = "ticket"
    num_samples: int = 16
    by: By = "magnitude"
    structure: Structure = "weights"
    biases: bool = False
    step: float = 0.01
    procedure: str = "fixed-sequence"
    anchor: tuple[float, float] | None = None
    weights: str | None = None
    weight_bound: float = 1.0
    seed: int = 0

    def grid(self) -> list[float]:
        """0, step, 2 step, ... below 1."""
        if not 0 < self.step < 1:
            raise ValueError(f"expected a step in (0, 1), got {self.step:g}")
        return [round(i * self.step, 10) for i in range(int(np.ceil(1 / self.step - 1e-9)))]

    def promises(self) -> list[Promise]:
        """Raises ValueError for a risk that is not there, or lists that do not fit each other."""
        if not len(self.risks) == len(self.alphas) == len(self.tests):
            raise ValueError(
                f"expected an alpha for every risk, got {len(self.risks)} risks and {len(self.alphas)} alphas"
            )
        if self.procedure not in selection.PROCEDURES:
            raise ValueError(f"expected a procedure of {', '.join(selection.PROCEDURES)}, got {self.procedure!r}")
        if self.anchor is not None and self.risks != ("disagreement",):
            raise ValueError(f"expected risk disagreement alone with an anchor, got {', '.join(self.risks)}")
        if not 0 < self.delta < 1:
            raise ValueError(f"expected delta in (0, 1), got {self.delta:g}")
        found = [
            Promise(risks.named(n), a, t or None) for n, a, t in zip(self.risks, self.alphas, self.tests, strict=True)
        ]
        if self.weights:
            weights = np.load(self.weights, allow_pickle=False)
            found = [p._replace(risk=risks.shifted(p.risk, weights, self.weight_bound)) for p in found]
        for promise in found:
            promise.risk.check(promise.test or promise.risk.test)
            if not 0 < promise.alpha < promise.risk.upper:
                raise ValueError(
                    f"expected alpha in (0, {promise.risk.upper:g}) for {promise.risk.name}, got {promise.alpha:g}"
                )
        return found


class Certified(NamedTuple):
    """A certificate and what it certifies. facts: as in certificate.json. chosen: None where nothing is certified."""

    facts: dict[str, Any]
    chosen: Frozen | None


def certify_fit(fit: Fit, calibration: Split, settings: Settings, data: Data | None = None) -> Certified:
    """Prune a fit as far as the calibration examples can certify. Nothing is written.

    data: the fit's own, for batch-norm statistics of pruned nets where it has none yet.
    """
    return _certified(_candidates([fit], settings, data), calibration, settings)


def certify_fits(fits: Sequence[Fit], calibration: Split, settings: Settings, data: Data | None = None) -> Certified:
    """Choose among fits of growing sparsity that were trained separately, by the same test: the grid is their sparsity."""
    return _certified(_candidates(fits, settings, data), calibration, settings)


Candidates = list[tuple[float, Callable[[], Frozen]]]


def _candidates(fits: Sequence[Fit], settings: Settings, data: Data | None) -> Candidates:
    """The grid, and the predictor at each of its points, made when it is asked for. Raises ValueError for what makes no
    sense, before any loss is looked at."""
    settings.promises()
    if data is not None:
        for fit in fits:
            fit.look_at(data)
    ordered = sorted(fits, key=lambda fit: -fit.topology.density)
    frozen = [Frozen.of(f, settings.predict, num_samples=settings.num_samples, seed=settings.seed) for f in ordered]
    if len(fits) > 1:
        return [(round(1 - one.topology.density, 10), partial(_itself, one)) for one in frozen]
    members = pruning.family(fits[0], frozen[0], settings.by, settings.structure, biases=settings.biases)
    return [(level, partial(members.at, level)) for level in settings.grid()]


def _itself(frozen: Frozen) -> Frozen:
    return frozen


def _certified(found: Candidates, calibration: Split, settings: Settings) -> Certified:
    grid, candidates = [level for level, _ in found], [make for _, make in found]
    promises, labels = settings.promises(), calibration.y.numpy()
    reference = candidates[0]().predict(calibration.x)
    order = np.random.default_rng(settings.seed).permutation(len(labels))
    kept: dict[int, list[NDArray[np.float64]]] = {}
    if settings.weights and len(np.load(settings.weights, allow_pickle=False)) != len(labels):
        raise ValueError(f"expected a weight for each of {len(labels)} calibration examples in {settings.weights}")

    def losses(place: int) -> list[NDArray[np.float64]]:
        probs = reference if place == 0 else candidates[place]().predict(calibration.x)
        kept[place] = [promise.risk.losses(probs, labels, reference)[order] for promise in promises]
        return kept[place]

    decision = certificate.certify(losses, len(candidates), promises, settings.delta, settings.procedure)
    chosen = None if decision.chosen is None else candidates[decision.chosen]()
    facts = _facts(decision, grid, promises, settings, len(labels))
    facts["predictor"] = {"how": settings.predict, "draws": len(candidates[0]().values), "seed": settings.seed}
    facts["unpruned"] = pruning.facts(candidates[0]())
    facts["chosen"] = pruning.facts(chosen) if chosen is not None else None
    stopped = decision.stopped
    facts["help"] = [
        {
            "lambda": grid[stopped], "risk": promise.risk.name, "alpha": promise.alpha, "observed": promise.risk.value(own),
            "examples": certificate.more_examples(promise, own, settings.delta),
            "larger_alpha": certificate.larger_alpha(promise, own, settings.delta),
        }
        for promise, own in zip(promises, kept.get(stopped, []), strict=False)
        if promise.p_value(own, settings.delta) > settings.delta
    ] if stopped is not None else []  # fmt: skip
    if settings.anchor is not None:
        facts["anchor"] = _anchor(reference, labels, settings)
    facts["assumptions"] = certificate.assumptions(facts)
    return Certified(facts, chosen)


def _facts(
    decision: Decision, grid: list[float], promises: Sequence[Promise], settings: Settings, n: int
) -> dict[str, Any]:
    p_values = [None if np.isnan(p) else p for p in decision.p_values]
    return {
        "alpha": settings.alphas[0],
        "delta": settings.delta,
        "risks": [
            {"name": p.risk.name, "says": p.risk.says, "alpha": p.alpha, "test": p.test or p.risk.test} for p in promises
        ],
        "n": n,
        "split": settings.split,
        "procedure": settings.procedure,
        "pruning": {"by": settings.by, "structure": settings.structure, "biases": settings.biases},
        "seed": settings.seed,
        "grid": grid,
        "p_values": p_values,
        "observed": decision.observed,
        "rejected": decision.rejected,
        "lambda": None if decision.chosen is None else grid[decision.chosen],
        "settings": runs.plain(settings._asdict()),
        "looks": [],
        "hashes": {},
    }  # fmt: skip


def _anchor(reference: NDArray[np.float64], labels: NDArray[np.int64], settings: Settings) -> dict[str, Any]:
    """R(pruned) <= R(unpruned) + P(they differ): the first, certified on labels, makes the second a promise about labels."""
    alpha, delta = settings.anchor or (0.0, 0.0)
    error = risks.named("error")
    losses = error.losses(reference, labels, reference)
    p = error.p_value(losses, alpha, delta)
    return {"alpha": alpha, "delta": delta, "observed": error.value(losses), "p_value": p, "certified": p <= delta}


# --- Run folders --------------------------------------------------------------------------------------------------
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
    candidates = _candidates(fits, settings, loaded[0])
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
    result = _certified(candidates, calibration, settings)
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

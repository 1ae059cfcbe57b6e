"""Do intervals cover? The PNC predictor's, our own Bayesian ones and split conformal prediction. Prints markdown.

    python examples/benchmarks/pnc.py sines [--dims 2] [--rows 256] [--width 256] [--noise 0.001] [--seeds 40] [--out FILE]
    python examples/benchmarks/pnc.py uci --sets boston energy --data-dir DATA [--splits 5] [--out FILE]
    python examples/benchmarks/pnc.py spread [--dims 2] ...       (how much of the procedure's noise is left)

`sines`: y = sum_j sin(x_j) + N(0, noise^2), x uniform on [0, .2]^d (Huang, Lam & Zhang 2023); a seed is a data set and an
initialisation. The mean function is known: an interval is asked whether it covers it at the cube's centre, which is the paper's
one point, and at 50 random points. `uci`: published splits; only y is known there.

PNC's intervals claim the mean function. For a new y they are widened by the noise: the half-width is the root of its square plus
(1.96 s)^2, s^2 the mean square of residuals on validation rows, a tenth that no network trains on. CigL's intervals are central
quantiles of 64 fresh masks, for the mean function of their means, for y of the mixture. Conformal intervals (MAPIE, a quarter of
the training rows to calibrate) claim y alone. PNC's network is `deep_gp` of one hidden layer at a fixed precision of 2 (so that
the loss is the squared error), full batches, SGD at the rate 1.2 / (2 d + 1), stable whatever the data are, since 2 d + 1 is
the trace of twice the tangent kernel on standardised inputs; CigL's network is that of `examples/grids/uci.yaml`. Nothing is
chosen by coverage.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mapie.regression import SplitConformalRegressor
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin

from espalier import BayesianNetwork, Data, Fit, Training, load_data
from espalier.calibration import clopper_pearson, t_interval
from espalier.contracts import Split
from espalier.data import from_arrays
from espalier.inference import cigl, dense, rigl, static
from espalier.models import deep_gp
from espalier.references.procedural import (
    Interval,
    Procedure,
    batching,
    cheap_bootstrap,
    cheap_bootstrap_interval,
    corrected,
)
from espalier.store import Ledger

POINTS = 50
Ends = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Low and high, `(n,)` each."""
Row = Mapping[str, Any]
"""One arm on one seed: coverage of the mean at the centre and at random points, of y, mean widths, seconds of CPU, networks."""
ARMS = {
    "batching": "PNC, batching in 4 (8 networks, each on a quarter)",
    "bootstrap": "PNC, cheap bootstrap (4 networks)",
    "uncorrected": "the same without correction (2 networks)",
    "static": "PNC, cheap bootstrap, static 80 % sparse (4)",
    "rigl": "PNC, cheap bootstrap, RigL 80 % sparse (4)",
    "cigl": "CigL 80 % sparse, 64 masks (1)",
    "conformal": "split conformal around a dense network (1)",
}


def sines(dims: int, rows: int, noise: float, seed: int) -> tuple[Data, NDArray[np.float64]]:
    """Data whose test rows are the centre and `POINTS` others, and the mean function there, `(1 + POINTS,)`."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.uniform(0, 0.2, (rows, dims)), np.full((1, dims), 0.1), rng.uniform(0, 0.2, (POINTS, dims))])
    mean = np.sin(x).sum(1)
    y = mean + noise * rng.normal(size=len(x))
    data = from_arrays(x[:rows], y[:rows], x_test=x[rows:], y_test=y[rows:], validation=0.1, calibration=0.0, name="sines")
    return data, mean[rows:]


def network(data: Data, width: int, seed: int) -> BayesianNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return deep_gp.model(
            data.shape, 1, widths=(width,), noise_precision=2.0, learn_precision=False, prior_scale=None
        )


def programs(data: Data, steps: int) -> dict[str, Callable[..., Fit]]:
    """Full batches, so that a quarter of the rows is trained for as many steps."""
    rate = 1.2 / (2 * data.shape[0] + 1)
    training = Training(
        epochs=steps, batch_size=10**6, learning_rate=rate, rate="constant", weight_decay=1e-10, device="cpu"
    )
    return {
        "dense": partial(dense.infer, training=training),
        "static": partial(static.infer, sparsity=0.8, training=training),
        "rigl": partial(rigl.infer, sparsity=0.8, delta_t=max(2, steps // 10), training=training),
    }


class Trained(RegressorMixin, BaseEstimator):
    """A fit as MAPIE asks for it."""

    def __init__(self, fit: Fit) -> None:
        self.fit_ = fit

    def fit(self, x: Any, y: Any) -> Trained:
        return self

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(self.fit_.predict(torch.from_numpy(x))[..., 0].mean(0))


def conformal(infer: Callable[..., Fit], model: BayesianNetwork, data: Data, seed: int) -> Ends:
    held = len(data.train.y) // 4  # the training rows are in random order
    kept, aside = (Split(data.train.x[part], data.train.y[part]) for part in (slice(held, None), slice(held)))
    fit = infer(model, data._replace(train=kept), seed=seed)
    judge = SplitConformalRegressor(Trained(fit), confidence_level=0.95, prefit=True)
    judge.conformalize(aside.x.numpy(), data.in_units(aside.y).numpy())
    _, ends = judge.predict_interval(data.test.x.numpy())
    return ends[:, 0, 0], ends[:, 1, 0]


def bayesian(data: Data, steps: int, seed: int) -> tuple[Ends, Ends]:
    """CigL's intervals for the mean function and for y."""
    epochs = max(10, steps * 64 // len(data.train.y))
    training = Training(epochs=epochs, batch_size=64, optimizer="adam", learning_rate=0.01, device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = deep_gp.model(data.shape, 1, widths=(100, 100), noise_precision=10.0)
    fit = cigl.infer(model, data, sparsity=0.8, delta_t=50, training=training, seed=seed)
    mean = fit.predict(data.test.x, "redraw", num_samples=64)[..., 0].numpy()
    y = fit.mixture(data.test.x, "redraw", num_samples=64).sample(64 * 32).numpy()
    return tuple(np.quantile(drawn, [0.025, 0.975], axis=0) for drawn in (mean, y))  # type: ignore[return-value]


def arms(
    data: Data, width: int, steps: int, bayesian_steps: int, wanted: Sequence[str], seed: int
) -> dict[str, tuple[Ends, Ends, float]]:
    """By name: the interval for the mean function on the test rows, that for y, seconds of CPU."""
    found: dict[str, tuple[Ends, Ends, float]] = {}
    model, infers = network(data, width, seed), programs(data, steps)
    x, tested = torch.cat([data.test.x[:], data.validation.x[:]]), len(data.test.y)
    targets = data.in_units(data.validation.y)

    def keep(name: str, interval: Interval, seconds: float) -> None:
        noise = (interval.centre[tested:] - targets).square().mean()
        half = ((interval.high - interval.centre).square() + 1.96**2 * noise).sqrt()
        ends = [(interval.low, interval.high), (interval.centre - half, interval.centre + half)]
        mean, y = (tuple(end[:tested].numpy() for end in pair) for pair in ends)
        found[name] = mean, y, seconds  # type: ignore[assignment]

    def timed(name: str, of: Callable[[], Interval]) -> None:
        start = time.process_time()
        interval = of()
        keep(name, interval, time.process_time() - start)

    fits: list[Fit] = []

    def kept(*arguments: Any, **options: Any) -> Fit:
        fits.append(infers["dense"](*arguments, **options))
        return fits[-1]

    if "batching" in wanted:
        timed("batching", lambda: batching(Procedure(infers["dense"], model, seed), data, x, seed=seed))
    if "bootstrap" in wanted:
        timed("bootstrap", lambda: cheap_bootstrap(Procedure(kept, model, seed), data, x, seed=seed))
        whole, replicate = (fits[place].predict(x)[0, :, 0] for place in (0, 2))  # f, g, and both on the resample
        keep("uncorrected", cheap_bootstrap_interval(whole, replicate[None]), found["bootstrap"][2] / 2)
    for name in {"static", "rigl"} & set(wanted):
        timed(name, lambda name=name: cheap_bootstrap(Procedure(infers[name], model, seed), data, x, seed=seed))
    if "cigl" in wanted:
        start = time.process_time()
        found["cigl"] = (*bayesian(data, bayesian_steps, seed), time.process_time() - start)
    if "conformal" in wanted:
        start = time.process_time()
        ends = conformal(infers["dense"], model, data, seed)
        found["conformal"] = ends, ends, time.process_time() - start
    return found


def scored(data: Data, mean: NDArray[np.float64] | None, **options: Any) -> list[Row]:
    y, rows = data.in_units(data.test.y).numpy(), []
    for name, (own, new, seconds) in arms(data, **options).items():
        row = {"arm": name, "y": covers(new, y).mean(), "width of y": width(new), "width": width(own), "seconds": seconds}
        row["y as it is"] = covers(own, y).mean()
        if mean is not None:
            hit = covers(own, mean)
            row |= {"centre": float(hit[0]), "points": hit[1:].mean(), "width": width(own)}
        rows.append({key: value if isinstance(value, str) else float(value) for key, value in row.items()})
    return rows


def covers(ends: Ends, truth: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray((ends[0] <= truth) & (truth <= ends[1]))


def width(ends: Ends) -> float:
    return float((ends[1] - ends[0]).mean())


# --- Tables -------------------------------------------------------------------------------------------------------
def with_interval(values: Sequence[float]) -> str:
    """Mean over seeds and its 95 % t interval."""
    ends = t_interval(values)
    return f"{statistics.fmean(values):.3f}" + ("" if ends is None else f" [{max(ends[0], 0.0):.3f}, {min(ends[1], 1.0):.3f}]")


def table(rows: Sequence[Row], known: bool) -> str:
    first = ["mean at the centre", "mean at random points"] if known else ["y, as it is"]
    heads = ["arm", *first, "width", "y", "width for y", "CPU seconds"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, said in ARMS.items():
        of = {key: [row[key] for row in rows if row["arm"] == name] for key in rows[0] if key != "arm"}
        if not of.get("y"):
            continue
        if known:
            hits, count = int(sum(of["centre"])), len(of["centre"])
            low, high = clopper_pearson(hits, count)
            cells = [f"{hits}/{count} [{low:.2f}, {high:.2f}]", with_interval(of["points"])]
        else:
            cells = [with_interval(of["y as it is"])]
        widths = [f"{statistics.fmean(of[key]):.3g}" for key in ("width", "width of y")]
        seconds = f"{statistics.fmean(of['seconds']):.1f}"
        lines.append(f"| {' | '.join([said, *cells, widths[0], with_interval(of['y']), widths[1], seconds])} |")
    return "\n".join(lines)


def run(keys: Mapping[str, Callable[[], list[Row]]], out: Path | None) -> dict[str, list[Row]]:
    """Whatever is not in the ledger yet; all of it."""
    book = Ledger(out)
    return {key: book.of(key, work) for key, work in keys.items()}


def spread(given: argparse.Namespace) -> str:
    """Standard deviations over initialisations b, on one data set, of f_b and of PNC: means over the points."""
    data, mean = sines(given.dims, given.rows, given.noise, 0)
    lines = ["| inference | sd over b of f | of PNC | RMSE of f | of PNC |", "|---|---|---|---|---|"]
    for name, infer in programs(data, given.steps).items():
        both: dict[str, list[torch.Tensor]] = {"f": [], "PNC": []}
        for b in range(given.seeds):
            model = network(data, given.width, b)
            both["f"].append(infer(model, data, seed=b).predict(data.test.x)[0, :, 0])
            both["PNC"].append(corrected(Procedure(infer, model, b), data, data.test.x))
        stacks = [torch.stack(own) for own in both.values()]
        cells = [f"{own.std(0).mean():.2g}" for own in stacks]
        cells += [f"{(own - torch.from_numpy(mean)).square().mean().sqrt():.2g}" for own in stacks]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sines", "uci", "spread"])
    parser.add_argument("--dims", type=int, default=2)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--noise", type=float, default=0.001)
    parser.add_argument("--steps", type=int, default=60, help="of PNC's networks")
    parser.add_argument("--bayesian-steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=40, help="data sets and initialisations; of spread, initialisations")
    parser.add_argument("--arms", nargs="+", choices=[name for name in ARMS if name != "uncorrected"],
                        default=[name for name in ARMS if name != "uncorrected"],
                        help="default: all; uncorrected comes with bootstrap")  # fmt: skip
    parser.add_argument("--sets", nargs="+", default=["boston", "energy"])
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--data-dir", help="default: ESPALIER_DATA")
    parser.add_argument("--out", type=Path, help="keep every finished seed here, and resume from it")
    given = parser.parse_args()
    if given.what == "spread":
        print(spread(given))
        return
    options = {"width": given.width, "steps": given.steps, "bayesian_steps": given.bayesian_steps, "wanted": given.arms}
    said = json.dumps(options)

    def on_sines(seed: int) -> list[Row]:
        data, mean = sines(given.dims, given.rows, given.noise, seed)
        return scored(data, mean, **options, seed=seed)

    def on_uci(name: str, split: int) -> list[Row]:
        data = load_data(name, data_dir=given.data_dir, fold=split, validation=0.1, calibration=0.0)
        return scored(data, None, **options, seed=split)

    if given.what == "sines":
        facts = f"{given.dims} {given.rows} {given.noise} {said}"
        found = run({f"sines {facts} {seed}": partial(on_sines, seed) for seed in range(given.seeds)}, given.out)
        print(table([row for rows in found.values() for row in rows], known=True))
        return
    for name in given.sets:
        found = run({f"{name} {said} {split}": partial(on_uci, name, split) for split in range(given.splits)}, given.out)
        print(f"{name}, {given.splits} splits:\n\n{table([row for rows in found.values() for row in rows], known=False)}\n")


if __name__ == "__main__":
    main()

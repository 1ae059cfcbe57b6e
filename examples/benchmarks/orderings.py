"""Which weights first? How far each order of pruning is certified, of the same Gaussian nets; and the evidence as weights go.

    python examples/benchmarks/orderings.py [--data digits] [--seeds 0 1 2] [--picture evidence-curve.png]

`mean_field` nets are pruned without retraining, single weights and whole channels, as far as the error is certified not to exceed
--alpha with confidence .95 (fixed-sequence testing on the calibration split, which each order looks at for itself: a comparison,
and no certificate of all). Prints the fraction of the active weights that goes, as markdown; the picture is of the first seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from espalier import Training, load_data
from espalier.certificates import Settings, certify_fit
from espalier.contracts import Data
from espalier.inference import mean_field
from espalier.models import mlp
from espalier.pictures import Curve, Picture, plots
from espalier.prediction import Fit
from espalier.topology import evidence

ORDERS = ("magnitude", "layer-magnitude", "snr", "inclusion", "bayes-factor")


def trained(data: Data, seed: int, epochs: int) -> Fit:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = mlp.model(data.shape, data.num_outputs, hidden=(100, 100))
    training = Training(epochs=epochs, batch_size=64, learning_rate=0.1, device="cpu")
    return mean_field.infer(model, data, sparsity=0.5, noise_scale=0.05, delta_t=20, training=training, seed=seed)


def factors(fit: Fit) -> torch.Tensor:
    """log BF(w = 0) of the active weights."""
    assert fit.pairs.scales is not None
    at_zero = evidence.normal_at_zero(fit.record["prior_scale"])
    return evidence.log_bayes_factor(fit.pairs.values[-1].double(), fit.pairs.scales[-1].double(), at_zero)


def certified(fit: Fit, data: Data, by: str, structure: str, alpha: float) -> float:
    """The fraction of the fit's active weights that goes; 0 where none does."""
    settings = Settings(alphas=(alpha,), by=by, structure=structure, predict="mean")  # type: ignore[arg-type]
    chosen = certify_fit(fit, data.calibration, settings, data).chosen
    return 0.0 if chosen is None else 1 - chosen.topology.num_active / fit.topology.num_active


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--alpha", type=float, default=0.08)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    if given.picture is not None:
        plots.check_free(given.picture)
    print("| seed | structure | " + " | ".join(ORDERS) + " | weights that the data are against |")
    print("|---|---|" + "---|" * (len(ORDERS) + 1), flush=True)
    for seed in given.seeds:
        data = load_data(given.data, split_seed=seed, calibration=0.3)
        fit = trained(data, seed, given.epochs)
        against = factors(fit)
        for structure in ("weights", "channels"):
            found = [certified(fit, data, by, structure, given.alpha) for by in ORDERS]
            share = float((against > 0).double().mean())
            print(f"| {seed} | {structure} | {' | '.join(f'{each:.2f}' for each in found)} | {share:.2f} |", flush=True)
        if given.picture is not None and seed == given.seeds[0]:
            curve = evidence.curve(against).numpy()
            share = torch.linspace(0, 1, len(curve)).numpy()
            picture = Picture("Evidence as weights go, best first", "fraction of active weights left out",
                              "log p(data | those left out) / p(data)", (Curve("Bayes factor", share, curve),))  # fmt: skip
            plots.save(plots.curves(picture), given.picture)


if __name__ == "__main__":
    main()

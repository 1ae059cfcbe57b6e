"""How far can a segmentation net be pruned, with a certificate on 1 - Dice? A small U-Net on the frames of PolypGen.

    python examples/benchmarks/confident_polyps.py FOLDER          (ten minutes on one thread; `examples/polyps.py` trains)

One loss per image, in [0, 1] and continuous: WSR betting decides, the hinge and Hoeffding-Bentkus p-values stand beside it.
First one certificate from the 250 calibration frames, as a user would get it, for 1 - Dice against the labels and, without
labels, against the masks of the unpruned net; alpha is 0.1 above the unpruned validation risk, rounded up to a twentieth, and
0.2 without labels; delta 0.1. Then calibration sets drawn with replacement from the pool of calibration and test frames, whose
mean loss is then the true risk: is the certificate right in 90 % of them? Frames of one sequence are not independent, so that
for new patients the promise is weaker than it reads; the certificate says so.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from espalier import certificate, pvalues, selection
from espalier.certifying import Settings, certify_fit
from espalier.pruning import Frozen, family
from espalier.risks import named

sys.path.insert(0, str(Path(__file__).parents[1]))
from polyps import load_polyps, train

STEP, DELTA = 0.02, 0.1
Floats = NDArray[np.float64]


def p_values(alpha: float) -> dict[str, tuple[Callable[[Floats], Floats], str]]:
    """test -> p-values of losses `(m, n)`, and the procedure."""
    return {
        "wsr": (lambda x: pvalues.wsr(x, alpha, DELTA), "fixed-sequence"),
        "hinge": (lambda x: pvalues.hinge(x.sum(1), x.shape[1], alpha), "fixed-sequence"),
        "hb": (lambda x: pvalues.hb(x.sum(1), x.shape[1], alpha), "fixed-sequence"),
        "Bonferroni, wsr": (lambda x: pvalues.wsr(x, alpha, DELTA), "bonferroni"),
        "clt (asymptotic)": (lambda x: pvalues.clt(x, alpha, asymptotic=True), "fixed-sequence"),
    }


def coverage(
    name: str, losses: Floats, grid: list[float], alpha: float, draws: int, sizes: tuple[int, ...] = (100, 200)
) -> None:
    risk, pool = losses.mean(1), losses.shape[1]
    print(f"\n{name} at most {alpha:g}, delta {DELTA}; {draws} sets of n drawn with replacement from {pool} frames:\n")
    print("| n | test | certified | lambda-hat, mean (sd) | true risk there | right (or nothing certified) |")
    print("|---|---|---|---|---|---|")
    for n in sizes:
        for test, (p_value, procedure) in p_values(alpha).items():
            rng = np.random.default_rng([3, n])  # the same draws for every test
            places = []
            for _ in range(draws):
                rows = rng.integers(pool, size=n)
                places.append(max(selection.rejected(p_value(losses[:, rows]), DELTA, procedure), default=-1))
            some = np.array([place for place in places if place >= 0], dtype=int)
            right = sum(place < 0 or risk[place] <= alpha for place in places)
            low = beta.ppf(0.025, right, draws - right + 1)
            high = beta.ppf(0.975, right + 1, draws - right) if right < draws else 1.0
            where = np.array(grid)[some]
            told = f"{where.mean():.3f} ({where.std():.3f}) | {risk[some].mean():.4f}" if len(some) else "- | -"
            print(
                f"| {n} | {test} | {len(some) / draws:.3f} | {told} | {right / draws:.3f} [{low:.3f}, {high:.3f}] |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--epochs", type=int)
    arguments = parser.parse_args()
    data = load_polyps(arguments.folder)
    fit = train(data, **({"epochs": arguments.epochs} if arguments.epochs else {}))
    base = Frozen.of(fit, "unmasked")
    dice = named("dice")
    probs = base.predict(data.validation.x)
    unpruned = dice.value(dice.losses(probs, data.validation.y.numpy(), probs))
    alpha = math.ceil(20 * (unpruned + 0.1)) / 20
    print(
        f"{base.topology.num_weights:,} weights; unpruned mean Dice on {len(probs)} validation frames {1 - unpruned:.4f}"
    )
    for risk, level in (("dice", alpha), ("dice-change", 0.2)):
        settings = Settings((risk,), (level,), delta=DELTA, predict="unmasked", step=STEP)
        facts, chosen = certify_fit(fit, data.calibration, settings)
        print(f"\n{certificate.sentence(facts)}\n" + "\n".join(f"- {line}" for line in facts["assumptions"]))
        if chosen is not None:
            mine, whole = chosen.predict(data.test.x), base.predict(data.test.x)
            found = named(risk).value(named(risk).losses(mine, data.test.y.numpy(), whole))
            print(f"\nOn the {len(mine)} test frames: {named(risk).says} {found:.4f}")
    members, grid = family(fit, base), Settings(step=STEP).grid()
    each = {"dice": [], "dice-change": []}
    for level in grid:
        pruned = members.at(level)
        for risk, rows in each.items():
            losses = [named(risk).losses(pruned.predict(part.x), part.y.numpy(), base.predict(part.x))
                      for part in (data.calibration, data.test)]  # fmt: skip
            rows.append(np.concatenate(losses))
    print("\n| lambda | 1 - Dice | 1 - Dice to the unpruned |\n|---|---|---|")
    for place in range(0, len(grid), 5):
        print(f"| {grid[place]:g} | {each['dice'][place].mean():.4f} | {each['dice-change'][place].mean():.4f} |")
    coverage("1 - Dice", np.stack(each["dice"]), grid, alpha, arguments.draws)
    coverage("1 - Dice to the unpruned masks (no labels)", np.stack(each["dice-change"]), grid, 0.2, arguments.draws)


if __name__ == "__main__":
    main()

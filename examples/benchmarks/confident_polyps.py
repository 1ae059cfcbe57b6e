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
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espalier.certificates import certificate, pvalues
from espalier.certificates.certify import Settings, certify_fit
from espalier.certificates.pruning import Frozen, family
from espalier.certificates.risks import named

sys.path.insert(0, str(Path(__file__).parents[1]))
from confident_mnist import Tests, coverage_table
from polyps import load_polyps, train

STEP, DELTA = 0.02, 0.1
Floats = NDArray[np.float64]


def p_values(alpha: float) -> Tests:
    return {
        "wsr": (lambda x: pvalues.wsr(x, alpha, DELTA), "fixed-sequence"),
        "hinge": (lambda x: pvalues.hinge(x.sum(1), x.shape[1], alpha), "fixed-sequence"),
        "hb": (lambda x: pvalues.hb(x.sum(1), x.shape[1], alpha), "fixed-sequence"),
        "Bonferroni, wsr": (lambda x: pvalues.wsr(x, alpha, DELTA), "bonferroni"),
        "clt (asymptotic)": (lambda x: pvalues.clt(x, alpha, asymptotic=True), "fixed-sequence"),
    }


def coverage(name: str, losses: Floats, grid: list[float], alpha: float, draws: int) -> None:
    print(
        f"\n{name} at most {alpha:g}, delta {DELTA}; {draws} sets of n drawn with replacement from {losses.shape[1]} frames:\n"
    )
    coverage_table(losses, grid, alpha, draws, {n: p_values(alpha) for n in (100, 200)}, DELTA, stream=3)


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

"""Five arms on Fashion-MNIST elsewhere: MNIST as another world, and twelve corruptions in five severities.

    python examples/benchmarks/fashion_report.py --runs runs/fashion --data-dir DATA    (it resumes)

The arms are ways to predict of runs that `espalier fit` left in RUNS: rigl, rigl-1 and rigl-2 (seeds 0, 1, 2), mcdp (drop rate
0.2, distilled) and cigl (0.3); fashion-report.md has their commands. `espalier report` shows every way of each;
this script one way an arm, and the cells that are lost to RigL. One seed: intervals and verdicts are over examples.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from espalier import Data, calibration, runs
from espalier.calibration.comparison import Scores
from espalier.data import out_of_distribution, shifted
from espalier.data.corruptions import SEVERITIES, corruptions
from espalier.prediction import Predictor

Draws = NDArray[np.float64]
"""Class probabilities `(S, n, C)`."""
ARMS: dict[str, tuple[tuple[str, ...], Any]] = {
    "RigL": (("rigl",), "unmasked"),
    "RigL + MC-DP": (("mcdp",), "redraw"),
    "CigL": (("cigl",), "ticket"),
    "CigL distilled": (("mcdp",), "distilled"),
    "Ensemble of 3": (("rigl", "rigl-1", "rigl-2"), "unmasked"),
}
BASELINE = "RigL"
SCORES = {"accuracy": calibration.accuracy, "nll": calibration.nll, "ece_15": calibration.ece}
SHOWN = {"accuracy": "accuracy", "nll": "NLL", "brier": "Brier", "ece_15": "ECE (15 bins)", "ece": "ECE (15 bins)"}
DETECTED = {"auroc": "AUROC", "aupr_in": "AUPR, in", "aupr_out": "AUPR, out", "false_positive_rate": "FPR at 95 % TPR"}

HEAD = """\
# Fashion-MNIST elsewhere: another world, and corrupted images

The interpolating regime of `examples/grids/fashion-mlp.yaml` at 90 % sparsity: a 784-300-100-10 MLP on 10,000 images, 60
epochs. RigL fits its training images. One seed, and for the ensemble three: **intervals and verdicts are over the 10,000
test examples and do not know how other seeds would come out**.

```bash
fit() { espalier fit --model mlp --hidden 300,100 --data fashion-mnist --train-size 10000 --epochs 60 --batch-size 128 \\
        --learning-rate 0.1 --sparsity 0.9 "$@"; }
fit --inference rigl --seed 0 --out runs/fashion/rigl
fit --inference rigl --seed 1 --out runs/fashion/rigl-1
fit --inference rigl --seed 2 --out runs/fashion/rigl-2
fit --inference distilled --drop-rate 0.2 --out runs/fashion/mcdp
fit --inference cigl --drop-rate 0.3 --out runs/fashion/cigl
espalier report runs/fashion/rigl runs/fashion/mcdp --ensemble runs/fashion/rigl runs/fashion/rigl-1 runs/fashion/rigl-2 \\
                --ood mnist --corrupt all --out page.html
python examples/benchmarks/fashion_report.py --runs runs/fashion --out runs/fashion-tables.md
```

The arms: RigL; RigL + MC-DP, 16 masks of `mcdp`; CigL, the ticket of `cigl`; CigL distilled, the net of `mcdp`; the ensemble
of the three RigL nets. Drop rates are those that `fashion-mlp-tune.yaml` chose on validation rows. The page shows runs and
ensembles, each with all its ways; the tables are of one way each, and say what is lost to RigL. The other world is MNIST's
10,000 test digits; inside are the 10,000 test articles. An arm of one pass has no mutual information and no variation ratio,
and its expected entropy is its predictive entropy.
"""


class Arm(NamedTuple):
    """One way to predict of a fit, or of an ensemble."""

    predictor: Predictor
    way: Any

    def draws(self, x: Any, num_samples: int) -> Draws:
        found: Draws = self.predictor.predict(x, self.way, num_samples=num_samples).numpy()
        return found


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


def interval(ends: Any) -> str:
    return f"[{ends[0]:.3f}, {ends[1]:.3f}]"


def home(inside: Mapping[str, Draws], y: NDArray[np.int64]) -> str:
    rows = []
    for name, draws in inside.items():
        found = calibration.classification_summary(draws.mean(0), y)
        keys = ("accuracy", "nll", "brier", "ece_15")
        rows.append([name, str(len(draws)), *(f"{found[key]:.4f} {interval(found[f'{key}_interval'])}" for key in keys)])
    return table(["arm", "passes", "accuracy", "NLL", "Brier", "ECE (15 bins)"], rows)


def other_world(inside: Mapping[str, Draws], outside: Mapping[str, Draws]) -> tuple[str, str]:
    """Detection by every score that an arm has, and the same less RigL's by the same score."""
    rows, lost = [], []
    for name in inside:
        for score, of in calibration.UNCERTAINTIES.items():
            i, o = of(inside[name]), of(outside[name])
            if not i.any() and not o.any():
                continue  # one network: there are no draws that differ
            found = calibration.detection_summary(i, o)
            told = score.replace("_", " ")
            rows.append([name, told, *(f"{found[key]:.3f} {interval(found[f'{key}_interval'])}" for key in DETECTED)])
            a, b = of(inside[BASELINE]), of(outside[BASELINE])
            if name == BASELINE or not (a.any() or b.any()):
                continue
            entries = []
            for key, each in calibration.detection_differences((i, o), (a, b)).items():
                low, high = (-end for end in each.interval[::-1]) if key == "false_positive_rate" else each.interval
                word = "won" if low > 0 else "lost" if high < 0 else "tied"
                entries.append(f"{each.value:+.3f} {interval(each.interval)} {word}")
            lost.append([name, told, *entries])
    heads = ["arm", "by", *DETECTED.values()]
    return table(heads, rows), table([f"minus {BASELINE}", *heads[1:]], lost)


def corrupted(
    arms: Mapping[str, Arm], data: Data, clean: Mapping[str, NDArray[np.float64]], kind: str, num_samples: int
) -> dict[str, Any]:
    """Of one kind, by arm: scores at severities 0 to 5, and verdicts against RigL at 1 to 5."""
    y = data.test.y.numpy()
    found: dict[str, Any] = {name: {"scores": {s: [] for s in SCORES}, "verdicts": {}} for name in arms}
    for severity in (0, *SEVERITIES):
        x = shifted(data, kind, severity).x if severity else None
        probs = clean if x is None else {name: arm.draws(x, num_samples).mean(0) for name, arm in arms.items()}
        for name, p in probs.items():
            for score, of in SCORES.items():
                found[name]["scores"][score].append(of(p, y))
            if name != BASELINE and severity:
                for score, each in calibration.differences(Scores.of(p, y), Scores.of(probs[BASELINE], y)).items():
                    found[name]["verdicts"].setdefault(score, []).append(each.verdict)
    return found


def shift_tables(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """found: of `corrupted`, by kind."""
    kinds, arms = [*found], [*next(iter(found.values()))]
    parts = []
    for score in SCORES:
        by_arm = {arm: np.array([found[kind][arm]["scores"][score] for kind in kinds]) for arm in arms}
        for heads, values in (
            ([f"{SHOWN[score]} at severity", *map(str, (0, *SEVERITIES))], {arm: own.mean(0) for arm, own in by_arm.items()}),
            ([f"{SHOWN[score]}, severities 1 to 5", *kinds], {arm: own[:, 1:].mean(1) for arm, own in by_arm.items()}),
        ):
            parts.append(table(heads, [[arm, *(f"{value:.3f}" for value in own)] for arm, own in values.items()]))
    rows, lost = [], []
    for arm in arms[1:]:
        verdicts = {score: [found[kind][arm]["verdicts"][score] for kind in kinds] for score in found[kinds[0]][arm]["verdicts"]}
        counts = {score: Counter(word for kind in own for word in kind) for score, own in verdicts.items()}
        rows.append([arm, *(" / ".join(str(own[word]) for word in ("won", "tied", "lost")) for own in counts.values())])
        for score, own in verdicts.items():
            cells = []
            for kind, words in zip(kinds, own, strict=True):
                found_lost = [str(severity) for severity, word in enumerate(words, 1) if word == "lost"]
                cells += [f"{kind} {', '.join(found_lost)}"] if found_lost else []
            lost += [f"{arm} loses in {SHOWN.get(score, score)}: {'; '.join(cells)}."] if cells else []
    heads = [f"against {BASELINE}: won / tied / lost", *(SHOWN.get(name, name) for name in found[kinds[0]][arms[1]]["verdicts"])]
    return [*parts, table(heads, rows), *lost]


def kept(folder: Path, name: str, make: Callable[[], Any]) -> Any:
    """What a file of the folder holds, made where it is not there."""
    path = folder / f"{name}.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(make()), encoding="utf-8")
        print(f"{name} done", flush=True)
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/fashion"))
    parser.add_argument("--data-dir", help="default: ESPALIER_DATA")
    parser.add_argument("--ood", default="mnist")
    parser.add_argument("--num-samples", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("runs/fashion-tables.md"))
    arguments = parser.parse_args()
    data = runs.data_of(arguments.runs / "rigl", arguments.data_dir)
    folders = {name: [arguments.runs / run for run in own] for name, (own, _) in ARMS.items()}
    arms = {
        name: Arm(runs.ensemble(own) if len(own) > 1 else runs.load(own[0]), ARMS[name][1]) for name, own in folders.items()
    }
    inside = {name: arm.draws(data.test.x, arguments.num_samples) for name, arm in arms.items()}
    clean = {name: draws.mean(0) for name, draws in inside.items()}
    folder = arguments.out.with_suffix("")
    shift = {
        kind: kept(folder, kind, lambda kind=kind: corrupted(arms, data, clean, kind, arguments.num_samples))  # type: ignore[misc]
        for kind in corruptions(data.shape[0])
    }

    def elsewhere() -> Any:
        other = out_of_distribution(arguments.ood, data, data_dir=arguments.data_dir)
        return other_world(inside, {name: arm.draws(other, arguments.num_samples) for name, arm in arms.items()})

    parts = ["## At home", home(inside, data.test.y.numpy())]
    parts += [f"## Another world: {arguments.ood}", *kept(folder, f"world-{arguments.ood}", elsewhere)]
    parts += [f"## Corrupted: mean over {', '.join(shift)}", *shift_tables(shift)]
    arguments.out.write_text(f"{HEAD}\n" + "\n\n".join(parts) + "\n", encoding="utf-8")
    print(arguments.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

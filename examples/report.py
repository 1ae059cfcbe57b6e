"""Two runs and one page that shows them: open it, mail it, print it.

    python examples/report.py page.html
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from espalier.reports.look import look_at
from espalier.reports.report import write
from espalier.reports.worlds import criticism, shift
from espalier.runs import recipes, start


def main(page: Path | None = None, epochs: int = 30, replicates: int = 50) -> Path:
    folder = Path(tempfile.mkdtemp())
    page = page or folder / "page.html"
    common = ["--model", "mlp", "--data", "digits", "--hidden", "64,64", "--batch-size", "64", "--delta-t", "20"]
    common += ["--epochs", str(epochs)]
    for name, words in (("rigl", ["--inference", "rigl"]), ("cigl", ["--inference", "cigl", "--drop-rate", "0.2"])):
        start(recipes.resolve([*common, *words]), folder / name)
    looks = [look_at(folder / name) for name in ("rigl", "cigl")]
    for look in looks:
        for way, scores in look.scores.items():
            print(f"{look.name} {way:9s} accuracy {scores['accuracy']:.3f}, ECE {scores['ece_15']:.3f}")
    write(page, looks, [criticism(looks, replicates), shift(looks, ["gaussian noise", "contrast"], 4)])
    return page


if __name__ == "__main__":
    print(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None))

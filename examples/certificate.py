"""Prune a trained network as far as a calibration split can certify, and say what was promised.

    python examples/certificate.py

With confidence 0.95 the error of the pruned net on new digits is at most alpha, whatever the network is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from espalier.cli.main import main as espalier


def main(folder: Path | None = None, epochs: int = 30, alpha: float = 0.1) -> int:
    run = (folder or Path(tempfile.mkdtemp())) / "run"
    words = ["fit", "--model", "mlp", "--inference", "cigl", "--data", "digits", "--hidden", "128,64", "--calibration", "0.3"]
    espalier([*words, "--epochs", str(epochs), "--batch-size", "64", "--delta-t", "20", "--out", str(run)])
    espalier(["certify", str(run), "--risk", "error", "--alpha", str(alpha), "--delta", "0.05"])
    return espalier(["verify", str(run)])


if __name__ == "__main__":
    raise SystemExit(main())

"""The parser of every command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

MOST_SAMPLES = 10_000


def check_samples(count: int) -> None:
    """Raises ValueError for a number of samples that is none, or would not end."""
    if not 1 <= count <= MOST_SAMPLES:
        raise ValueError(f"expected --num-samples of 1 to {MOST_SAMPLES:,}, got {count}")


class Parser(argparse.ArgumentParser):
    """argparse whose errors are our one sentence."""

    def of_data(self) -> None:
        """Where data lie, for a command that reads a run's: `data_dir`, `data`."""
        self.add_argument("--data-dir", help="where the data sets are; default: the run's own, then ESPALIER_DATA")
        self.of_source()

    def of_source(self) -> None:
        """`data`."""
        self.add_argument("--data", metavar="PATH", help="where the run's own file or folder of data has moved")

    def of_device(self) -> None:
        """`device`."""
        self.add_argument("--device", default="auto", help="auto (default), cpu or cuda")

    def of_samples(self, what: str = "fresh masks of `redraw`") -> None:
        """`num_samples`."""
        self.add_argument("--num-samples", type=int, default=16, help=f"{what} (default 16)")

    def of_ensembles(self) -> None:
        """`ensemble`: lists of folders; `pool`: what of theirs is averaged."""
        self.add_argument("--ensemble", type=Path, nargs="+", action="append", default=[], metavar="RUN", help="runs of the same "
                          "data, other seeds say, predicted together as one more arm; may be given again")  # fmt: skip
        self.add_argument("--pool", choices=["probabilities", "logits"], default="probabilities",
                          help="what of its members an ensemble averages")  # fmt: skip

    def of_groups(self) -> None:
        """`by`: a file and columns."""
        self.add_argument("--by", nargs="+", default=[], metavar=("FILE.csv", "COLUMN"), help="also by group: the file has a "
                          "line for each row of the data before the cut, and these columns, or all, name its group")  # fmt: skip

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for word in args or ():
            if word.startswith("--") and word.endswith("=--"):  # argparse would lose the value, and its way
                self.error(f"expected a value for {word[:-3]}, got --")
            if not word.isprintable():
                self.error(f"expected words that can be printed, got {word!r}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> Any:
        raise ValueError(f"{self.prog}: {message}")

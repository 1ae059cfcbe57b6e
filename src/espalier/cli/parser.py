"""The parser of every command."""

from __future__ import annotations

import argparse
from typing import Any


class Parser(argparse.ArgumentParser):
    """argparse whose errors are our one sentence."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for word in args or ():
            if word.startswith("--") and word.endswith("=--"):  # argparse would lose the value, and its way
                self.error(f"expected a value for {word[:-3]}, got --")
            if not word.isprintable():
                self.error(f"expected words that can be printed, got {word!r}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> Any:
        raise ValueError(f"{self.prog}: {message}")

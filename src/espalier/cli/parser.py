"""The parser of every command."""

from __future__ import annotations

import argparse
from typing import Any


class Parser(argparse.ArgumentParser):
    """argparse whose errors are our one sentence."""

    def error(self, message: str) -> Any:
        raise ValueError(f"{self.prog}: {message}")

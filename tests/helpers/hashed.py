"""A folder by its files and their hashes: two folders of equal hashes hold the same. A table without its times."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def timeless(path: Path) -> list[dict[str, str]]:
    """The rows of a grid's `cells.csv`, but for how long they took."""
    with path.open() as file:
        return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in csv.DictReader(file)]

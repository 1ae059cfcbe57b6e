"""Where things are: the repository, these helpers, and the folder of real data beside it."""

from __future__ import annotations

import os
from pathlib import Path

HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]
PROGRAM = HELPERS / "programs.py"
"""A user's own model, as a file."""
SHARED = Path(os.environ.get("ESPALIER_SHARED") or ROOT.parent / "shared").resolve()
"""Real data and published network outputs; tests that want what is not there are skipped."""

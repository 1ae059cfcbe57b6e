"""Claims about a run as the report sees it: what the fit predicts, and no other data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from espalier.calibration import mutual_information
from espalier.reports.look import Look, look_at


def test_it_holds_what_the_fit_predicts(looks: list[Look]) -> None:
    cigl, rigl = looks
    assert (cigl.name, rigl.name, cigl.way) == ("cigl", "rigl", "ticket")
    np.testing.assert_array_equal(cigl.probs, cigl.fit.predict(cigl.data.test.x)[0].double())
    np.testing.assert_array_equal(cigl.labels, cigl.data.test.y)
    draws = cigl.fit.predict(cigl.data.test.x, "redraw", num_samples=4).numpy()
    np.testing.assert_allclose(cigl.unsure["mutual_information"], mutual_information(draws), atol=1e-12)
    np.testing.assert_allclose(cigl.predicted["redraw"], draws.mean(0), atol=1e-12)
    assert list(cigl.predicted) == list(cigl.fit.ways)
    assert not rigl.unsure["mutual_information"].any()


def test_what_cannot_be_looked_at_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a run folder"):
        look_at(tmp_path)
    with pytest.raises(ValueError, match="expected a split of"):
        look_at(runs[0], "tset")

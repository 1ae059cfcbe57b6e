"""A run as the report sees it: the fit, its data, and what every way to predict came to on one split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier import runs
from espalier.calibration import REGRESSION_UNCERTAINTIES, UNCERTAINTIES
from espalier.calibration.uncertainty import mean_of
from espalier.contracts import Data
from espalier.prediction import evaluation
from espalier.prediction.fit import Fit, How
from espalier.prediction.uncertainty import HELD, uncertainties


class Look(NamedTuple):
    """predicted: as `evaluation.predictions` returns it. scores: of every way, as `evaluation.evaluate` has them. unsure: by name
    the uncertainty of every example, from the draws of `redraw`."""

    name: str
    folder: Path
    fit: Fit
    data: Data
    split: str
    predicted: Mapping[How, Any]
    scores: Mapping[str, Mapping[str, Any]]
    unsure: Mapping[str, NDArray[np.float64]]
    num_samples: int = 16
    """Of `redraw`."""

    @property
    def way(self) -> How:
        """The one network that the run is about."""
        return "distilled" if "distilled" in self.predicted else "ticket"

    @property
    def classes(self) -> bool:
        return self.data.num_classes is not None

    @property
    def labels(self) -> NDArray[Any]:
        """`(n,)` labels, or targets in the data's units."""
        y: Tensor = evaluation.split_of(self.data, self.split).y
        return y.long().numpy() if self.classes else self.data.in_units(y).numpy()

    @property
    def probs(self) -> NDArray[np.float64]:
        """Mean class probabilities of `way`, `(n, C)`."""
        found: NDArray[np.float64] = self.predicted[self.way]
        return found

    @property
    def named(self) -> list[str]:
        """What the classes are called."""
        return [str(label) for label in self.data.classes or range(self.probs.shape[-1])]

    def x(self, rows: NDArray[np.int64]) -> Any:
        """Inputs of these rows, as the network takes them."""
        return evaluation.split_of(self.data, self.split).x[torch.from_numpy(rows)]


def look_at(
    folder: Path,
    split: str = "test",
    *,
    data_dir: str | None = None,
    source: str | None = None,
    num_samples: int = 16,
    device: torch.device | str = "cpu",
    check: Callable[[Data], object] = lambda data: None,
) -> Look:
    """Read a finished run and predict a split with it. check: what else shall hold of its data, before any work.

    Raises ValueError where the report has no words for its targets.
    """
    runs.check_finished(folder)
    fit, data = runs.load(folder).to(device), runs.data_of(folder, data_dir, source)
    part = evaluation.split_of(data, split)
    if part.y.dim() > 1:
        raise ValueError(
            f"expected a run of one label or target an example, but {folder} has {tuple(part.y.shape[1:])} of them: use "
            "espalier evaluate"
        )
    check(data)
    predicted, unsure = _predicted(fit, data, split, num_samples)
    scores = evaluation.evaluate(fit, data, split, num_samples=num_samples, predicted=predicted)["predict"]
    return Look(folder.resolve().name, folder, fit, data, split, predicted, scores, unsure, num_samples)


def _predicted(
    fit: Fit, data: Data, split: str, num_samples: int
) -> tuple[dict[How, Any], dict[str, NDArray[np.float64]]]:
    """What every way predicts, and the uncertainties of `redraw`, from the same draws where all of them can be held."""
    x = evaluation.split_of(data, split).x
    if data.num_classes is None:
        predicted = evaluation.predictions(fit, data, split, num_samples=num_samples)
        draws = predicted["redraw"]
        if isinstance(draws, np.ndarray):
            return predicted, {name: score(draws) for name, score in REGRESSION_UNCERTAINTIES.items()}
        return predicted, uncertainties(fit, x, num_samples=num_samples)
    if num_samples * len(x) * data.num_classes > HELD:
        predicted = evaluation.predictions(fit, data, split, num_samples=num_samples)
        return predicted, uncertainties(fit, x, num_samples=num_samples)
    others: list[How] = [way for way in fit.ways if way != "redraw"]
    predicted = evaluation.predictions(fit, data, split, ways=others, num_samples=num_samples)
    draws = fit.predict(x, "redraw", num_samples=num_samples).numpy()
    ordered: dict[How, Any] = {way: mean_of(draws) if way == "redraw" else predicted[way] for way in fit.ways}
    return ordered, {name: score(draws) for name, score in UNCERTAINTIES.items()}

"""A run, or an ensemble of runs, as the report sees it: its data, and what every way to predict came to on one split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from espalier.prediction.predict import parameters_of
from espalier.prediction.predictor import Predictor
from espalier.prediction.uncertainty import HELD, uncertainties


class Look(NamedTuple):
    """folders: of the run, or of the members; none of a fit that is at hand. predicted: as `evaluation.predictions` returns it.
    scores: of every way, as `evaluation.evaluate` has them. unsure: by name the uncertainty of every example, from the draws of
    the posterior (`Predictor.posterior`); of a regression without a variance none."""

    name: str
    folders: tuple[Path, ...]
    predictor: Predictor
    data: Data
    split: str
    predicted: Mapping[How, Any]
    scores: Mapping[str, Mapping[str, Any]]
    unsure: Mapping[str, NDArray[np.float64]]
    num_samples: int = 16
    """Of `redraw`."""

    @property
    def fit(self) -> Fit:
        """Of a run."""
        (fit,) = self.predictor.fits
        return fit

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


def runs_of(looks: Sequence[Look]) -> list[Look]:
    """Those that are one fit: an ensemble has no topology, history or certificate of its own."""
    return [look for look in looks if len(look.predictor.fits) == 1]


def look_at(
    folder: Path,
    split: str = "test",
    *,
    data_dir: str | None = None,
    source: str | None = None,
    num_samples: int = 16,
    device: torch.device | str = "cpu",
) -> Look:
    """Read a finished run and predict a split with it. Raises ValueError where the report has no words for its targets."""
    fit = runs.load(folder).to(device)
    return look_with(fit, (folder,), split, data_dir=data_dir, source=source, num_samples=num_samples)


def look_with(
    predictor: Predictor,
    folders: Sequence[Path],
    split: str = "test",
    *,
    data_dir: str | None = None,
    source: str | None = None,
    num_samples: int = 16,
    check: Callable[[Data], object] = lambda data: None,
) -> Look:
    """Predict a split with the fit of a run, or with the ensemble of several. folders: theirs. check: what else shall hold of the
    data, before any work. Raises ValueError as `look_at` does."""
    data = runs.data_of(folders[0], data_dir, source)
    return look_of(runs.name_of(folders), predictor, data, split, folders=folders, num_samples=num_samples, check=check)


def look_of(
    name: str,
    predictor: Predictor,
    data: Data,
    split: str = "test",
    *,
    folders: Sequence[Path] = (),
    num_samples: int = 16,
    check: Callable[[Data], object] = lambda data: None,
) -> Look:
    """The same of a fit, or an ensemble, and data that are at hand; what it is called on the page."""
    part = evaluation.split_of(data, split)
    if part.y.dim() > 1:
        raise ValueError(
            f"expected one label or target an example to report on, but {name} has {tuple(part.y.shape[1:])} of them: use "
            "espalier evaluate"
        )
    check(data)
    predicted, unsure = _predicted(predictor, data, split, num_samples)
    scores = evaluation.evaluate(predictor, data, split, num_samples=num_samples, predicted=predicted)["predict"]
    return Look(name, tuple(folders), predictor, data, split, predicted, scores, unsure, num_samples)


def _predicted(
    predictor: Predictor, data: Data, split: str, num_samples: int
) -> tuple[dict[How, Any], dict[str, NDArray[np.float64]]]:
    """What every way predicts, and the posterior's uncertainties, from the same draws where all of them can be held."""
    way = predictor.posterior
    x = evaluation.split_of(data, split).x
    if data.num_classes is None:
        predicted = evaluation.predictions(predictor, data, split, num_samples=num_samples)
        draws = predicted[way]
        if not isinstance(draws, np.ndarray):
            draws = torch.stack([parameters_of(each) for each in draws.distributions]).numpy()
        if not np.isfinite(draws).all():  # Student's t of few degrees of freedom, say
            return predicted, {}
        if isinstance(predicted[way], np.ndarray):
            return predicted, {name: score(draws) for name, score in REGRESSION_UNCERTAINTIES.items()}
        return predicted, uncertainties(predictor, x, way, num_samples=num_samples)
    if len(predictor.fits) * num_samples * len(x) * data.num_classes > HELD:
        predicted = evaluation.predictions(predictor, data, split, num_samples=num_samples)
        return predicted, uncertainties(predictor, x, way, num_samples=num_samples)
    others: list[How] = [each for each in predictor.ways if each != way]
    predicted = evaluation.predictions(predictor, data, split, ways=others, num_samples=num_samples)
    draws = predictor.predict(x, way, num_samples=num_samples).numpy()
    same = predictor.alike([*others, way])[way]  # one network's ways are equal, in the last digit too
    predicted[way] = mean_of(draws) if same == way else predicted[same]
    return {each: predicted[each] for each in predictor.ways}, {name: score(draws) for name, score in UNCERTAINTIES.items()}

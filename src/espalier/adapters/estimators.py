"""Sparse Bayesian networks as scikit-learn estimators: `Pipeline`, `cross_val_score`, calibration curves and MAPIE take them.

    SparseBayesianClassifier(sparsity=0.8, random_state=0).fit(X, y).predict_proba(X)

Features `(n, d)` in, as NumPy or pandas, in any units; labels of any kind, or targets in theirs. What is trained is a program of
the shelf, `inference/cigl.py` say, on a model of the shelf or a network of one's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pyro.distributions import Categorical
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from espalier import shelf
from espalier.contracts import Data, Split
from espalier.data.arrays import from_arrays
from espalier.network import BayesianNetwork, evaluating
from espalier.prediction.fit import Fit, How
from espalier.randomness import seeded
from espalier.training.options import Training

MOVES = 20
"""Moves of the topology in a training, where nothing else is said."""


class _Sparse(BaseEstimator):
    """What both have. See `SparseBayesianClassifier`."""

    likelihood: str

    def __init__(
        self,
        model: str | nn.Module = "mlp",
        *,
        hidden: int | tuple[int, ...] = (64, 64),
        inference: str = "cigl",
        sparsity: float = 0.8,
        drop_rate: float | Literal["auto"] = 0.1,
        epochs: int = 50,
        batch_size: int = 32,
        optimizer: Literal["sgd", "adam"] = "adam",
        learning_rate: float = 0.01,
        weight_decay: float | None = None,
        validation_fraction: float = 0.0,
        patience: int = 0,
        predict_with: How = "redraw",
        num_samples: int = 16,
        device: str = "cpu",
        options: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.model = model
        self.hidden = hidden
        self.inference = inference
        self.sparsity = sparsity
        self.drop_rate = drop_rate
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.predict_with = predict_with
        self.num_samples = num_samples
        self.device = device
        self.options = options
        self.random_state = random_state

    # ------------------------------------------------------------------------------------------------------------ training

    def _trained(self, x: NDArray[Any], y: NDArray[Any], classes: list[int] | None) -> Self:
        if self.predict_with not in get_args(How):
            raise ValueError(f"expected predict_with of {', '.join(get_args(How))}, got {self.predict_with!r}")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        # The test split is one row, which nobody looks at: here all rows are to be learned from.
        data = from_arrays(
            x, y, x_test=x[:1], y_test=y[:1], name=type(self).__name__, validation=self.validation_fraction, calibration=0.0,
            split_seed=seed, classes=classes,
        )  # fmt: skip
        training = Training(
            epochs=self.epochs, batch_size=self.batch_size, optimizer=self.optimizer, learning_rate=self.learning_rate,
            weight_decay=self.weight_decay, patience=self.patience, device=self.device,
        )  # fmt: skip
        infer = shelf.load("inference", self.inference)
        known = inspect.signature(infer).parameters
        wanted = {
            "sparsity": self.sparsity, "drop_rate": self.drop_rate,
            "delta_t": max(1, training.steps(data) * 3 // (4 * MOVES)),
        } | {"training": training, "seed": seed}  # fmt: skip
        own = dict(self.options or {})
        if unknown := sorted(own.keys() - known.keys()):
            raise ValueError(f"expected options of {self.inference}, {', '.join(known)}, got {unknown[0]!r}")
        if twice := sorted(own.keys() & wanted.keys() - {"delta_t"}):
            raise ValueError(f"expected options without a parameter of the estimator's own, got {twice[0]!r}: say it by that")
        with seeded(seed):
            model = self._model(data)
        self.fit_: Fit = infer(model, data, **{**{n: v for n, v in wanted.items() if n in known}, **own})
        if self.predict_with not in self.fit_.ways:
            raise ValueError(f"expected predict_with of {', '.join(self.fit_.ways)}, got {self.predict_with!r}")
        none = Split(data.train.x[torch.arange(0)], data.train.y[:0])
        self.data_ = data._replace(train=none, validation=none, calibration=none, test=none, rows={})
        self.n_iter_ = len(self.fit_.history)
        return self

    def _model(self, data: Data) -> BayesianNetwork:
        if isinstance(self.model, BayesianNetwork):
            return self.model
        if isinstance(self.model, nn.Module):
            return BayesianNetwork(self.model, likelihood=self.likelihood)
        factory = shelf.load("models", self.model)
        hidden = tuple(self.hidden) if isinstance(self.hidden, Iterable) else (self.hidden,)
        given = {"hidden": hidden, "likelihood": self.likelihood}
        known = inspect.signature(factory).parameters
        model: BayesianNetwork = factory(data.shape, data.num_outputs, **{n: v for n, v in given.items() if n in known})
        return model

    # ---------------------------------------------------------------------------------------------------------- prediction

    def _drawn(self, X: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        x = validate_data(self, X, reset=False, dtype=np.float64)
        draws = self.fit_.predict(self.data_.inputs(x), self.predict_with, num_samples=self.num_samples)
        return np.asarray(draws.double().numpy())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.non_deterministic = self.random_state is None
        return tags


def _refuse(given: Mapping[str, Any]) -> None:
    """Raises TypeError for what `fit` does not take, sample weights among it, so that whoever asks sees that it does not."""
    given = {name: value for name, value in given.items() if value is not None}  # as scikit-learn says that there are none
    if "sample_weight" in given:
        raise TypeError(
            "expected every row to count once, got sample_weight: a posterior's evidence is its rows; repeat or resample them"
        )
    if given:
        raise TypeError(f"expected X and y, got {', '.join(given)} too")


class SparseBayesianClassifier(ClassifierMixin, _Sparse):
    """A classifier that is trained sparse and knows what it does not know.

    model: a model of the shelf (`espalier models`), or a network of yours: an `nn.Module` from `(n, d)` float32 to one output a
    class, or a `BayesianNetwork`. hidden: widths of the shelf's mlp. inference: a method of the shelf (`espalier inferences`).
    sparsity: fraction of the weights at zero. drop_rate: P(Z = 0); auto finds it, on validation rows.
    epochs, batch_size, optimizer, learning_rate, weight_decay, patience, device: as of `Training`.
    validation_fraction: of the rows, kept from training for `drop_rate="auto"` and `patience`. predict_with: a way to predict;
    num_samples: draws of `redraw`. options: further options of the inference. random_state: of everything random.

    fit_: the `Fit`. classes_, n_features_in_, n_iter_: as scikit-learn has them.
    """

    likelihood = "categorical"

    def fit(self, X: ArrayLike, y: ArrayLike, **refused: Any) -> Self:
        """Train on rows X `(n, d)` and labels y `(n,)` of any kind. Raises ValueError for what cannot be learned from, TypeError
        for sample weights."""
        _refuse(refused)
        x, labels = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(labels)
        labels = _column(labels)
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"expected two or more classes in y, got one class only, {self.classes_[0]!r}")
        return self._trained(x, numbers, list(range(len(self.classes_))))

    def _model(self, data: Data) -> BayesianNetwork:
        model = super()._model(data)
        try:
            with torch.no_grad(), evaluating(model):
                outcome = model.outcome(model.initial, data.train.x[torch.arange(2)].to(model.initial))
        except Exception:  # noqa: BLE001 - whatever it is, training says it in a sentence
            return model
        if isinstance(outcome, Categorical) and (outputs := outcome.logits.shape[-1]) != len(self.classes_):
            raise ValueError(f"expected a network of {len(self.classes_)} outputs, one a class, got one of {outputs}")
        return model

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities `(n, C)`, in the order of `classes_`: the mean over the draws of `predict_with`."""
        return np.asarray(self._drawn(X).mean(0))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable class of each row, `(n,)`."""
        probabilities = self.predict_proba(X)
        return np.asarray(self.classes_[probabilities.argmax(1)])


class SparseBayesianRegressor(RegressorMixin, _Sparse):
    """A regression that is trained sparse and says how sure it is: `predict(X, return_std=True)`.

    Parameters are those of `SparseBayesianClassifier`; a network of yours gives a mean for each column of y, whose noise is
    learned, or is a `BayesianNetwork` with a normal likelihood.
    """

    likelihood = "normal"

    def fit(self, X: ArrayLike, y: ArrayLike, **refused: Any) -> Self:
        """Train on rows X `(n, d)` and targets y `(n,)` or `(n, k)`, in any units. Raises as the classifier's."""
        _refuse(refused)
        x, targets = validate_data(
            self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        if targets.ndim == 2 and targets.shape[1] == 1:
            targets = _column(targets)
        return self._trained(x, targets.astype(np.float64), None)

    def predict(self, X: ArrayLike, return_std: bool = False) -> Any:
        """Means `(n,)` or `(n, k)`; with `return_std` a pair of them and the standard deviations of the posterior predictive, of
        noise and draws together: the square root of mean(sd^2) + var(mean) over the draws (law of total variance)."""
        draws = self._drawn(X)
        means, deviations = draws[..., 0], draws[..., 1]
        mean = means.mean(0)
        return (mean, np.sqrt((deviations**2).mean(0) + means.var(0))) if return_std else mean

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _column(y: NDArray[Any]) -> NDArray[Any]:
    from sklearn.utils import column_or_1d

    return np.asarray(column_or_1d(y, warn=True))

"""Model criticism: would this model have made data like those that came? Posterior and prior predictive checks.

A number T(y, x) is computed of the y that were observed and of R data sets that are drawn from the model: for each, one draw
of the network, then y from the likelihood at its outputs (Rubin 1984; Gelman, Meng & Stern 1996). With r of the R at least as
large, the one-sided p-value is (r + 1) / (R + 1): of held-out rows, a right model and an exact posterior, it is at most a in
a share a of data sets, whatever T. On rows that were trained on it is drawn towards 1/2, as the data are used twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier.contracts import Rows, Topology
from espalier.likelihoods import plain
from espalier.network import BayesianNetwork
from espalier.pictures.data import Replicated
from espalier.prediction.fit import Fit, How
from espalier.prediction.mixture import Mixture
from espalier.prediction.predict import in_units, parameters_of
from espalier.prediction.prior import prior_outcomes
from espalier.randomness import seeded

Floats = NDArray[np.float64]
Statistic = Callable[[Tensor, Any], Any]
"""T(y, x) -> a number; y `(n, ...)`: int64 labels, or float64 targets in the data's units."""
Discrepancy = Callable[[Tensor, Any, Tensor], Any]
"""D(y, x, parameters) -> a number; parameters of one draw of the network, as `parameters_of` gives them, in the data's units."""
REPLICATES = 200
HELD = 1 << 24  # numbers that a built-in statistic handles at a time


class Check(NamedTuple):
    """One statistic of the data beside those of R replicated data sets.

    observed: T(y, x); of a discrepancy the mean over draws. replicated `(R,)`: T(y_r, x), or D(y_r, x, draw r). upper, lower:
    one-sided p-values (r + 1) / (R + 1), r the replicates at least (at most) as large. p_value: two-sided, twice the smaller.
    error: its Monte Carlo standard error, for replicates of draws of their own. realised `(R,)`: D(y, x, draw r). source: what
    the replicates were drawn from. A statistic that is undefined (NaN) for a replicate counts as a tie.
    """

    name: str
    observed: float
    replicated: Floats
    p_value: float
    upper: float
    lower: float
    error: float
    source: str
    realised: Floats | None = None


class Predicted(NamedTuple):
    """What built-in statistics look at, of m = n times outputs a row numbers, in the order of `y.flatten()`.

    probs `(m, C)` of classes; mean and sd `(m,)` of any other likelihood, those of the mixture over draws, in the data's units.
    first `(m,)`: the row's first input, where inputs are one tensor.
    """

    probs: Floats | None
    mean: Floats
    sd: Floats
    first: Floats | None

    def residuals(self, y: Floats) -> Floats:
        """(y - mean) / sd."""
        return (y - self.mean) / self.sd


def _accuracies(y: Floats, predicted: Predicted) -> list[Floats]:
    """Of each class: the share of its examples that get it, NaN where it has none."""
    assert predicted.probs is not None
    guess = predicted.probs.argmax(1)
    counts = [((y == c) & (guess == c)).sum(-1) / (y == c).sum(-1) for c in range(predicted.probs.shape[1])]
    return [np.asarray(found, dtype=np.float64) for found in counts]


def _frequencies(y: Floats, predicted: Predicted) -> list[Floats]:
    assert predicted.probs is not None
    return [(y == c).mean(-1) for c in range(predicted.probs.shape[1])]


def _overconfidence(y: Floats, predicted: Predicted) -> Floats:
    assert predicted.probs is not None
    return np.asarray(predicted.probs.max(1).mean() - (y == predicted.probs.argmax(1)).mean(-1))


def _surprise(y: Floats, predicted: Predicted) -> Floats:
    assert predicted.probs is not None
    logs = np.log(np.maximum(predicted.probs, np.finfo(np.float64).tiny))
    entropy = -(predicted.probs * logs).sum(1).mean()
    return np.asarray(-logs[np.arange(len(logs)), y.astype(np.int64)].mean(-1) - entropy)


def _standard_moment(order: int) -> Callable[[Floats, Predicted], Floats]:
    def moment(y: Floats, predicted: Predicted) -> Floats:
        gap = predicted.residuals(y)
        gap = gap - gap.mean(-1, keepdims=True)
        return np.asarray((gap**order).mean(-1) / (gap**2).mean(-1) ** (order / 2))

    return moment


def _correlation(a: Floats, b: Floats) -> Floats:
    """Pearson's, of `(..., m)` with `(m,)`; NaN where either is constant."""
    a, b = a - a.mean(-1, keepdims=True), b - b.mean()
    return np.asarray((a @ b) / np.sqrt((a**2).sum(-1) * (b @ b)))


def _spread_over_input(y: Floats, predicted: Predicted) -> Floats:
    if predicted.first is None:
        raise ValueError("expected inputs that are one tensor for 'spread over input', got several: name other statistics")
    return _correlation(predicted.residuals(y) ** 2, predicted.first)


CLASSES: Mapping[str, Callable[[Floats, Predicted], Any]] = {
    "frequency": _frequencies,
    "accuracy": _accuracies,
    "calibration in the large": _overconfidence,
    "surprise": _surprise,
}
"""Of class labels. frequency, accuracy: a check for each class c, NAME[c]. calibration in the large: mean confidence minus
accuracy. surprise: mean of -ln p(y) minus the mean entropy of the predictions, nats: high where they are too sure."""
TARGETS: Mapping[str, Callable[[Floats, Predicted], Any]] = {
    "mean": lambda y, predicted: predicted.residuals(y).mean(-1),
    "sd": lambda y, predicted: predicted.residuals(y).std(-1),
    "min": lambda y, predicted: predicted.residuals(y).min(-1),
    "max": lambda y, predicted: predicted.residuals(y).max(-1),
    "spread over mean": lambda y, predicted: _correlation(predicted.residuals(y) ** 2, predicted.mean),
    "spread over input": _spread_over_input,
    "skewness": _standard_moment(3),
    "kurtosis": _standard_moment(4),
}
"""Of targets: all of residuals standardised by the predictive mean and sd. spread over mean, over input: the correlation of the
squared residual with the predicted mean, or with the row's first input: heteroscedasticity that the model does not have."""


def predictive_check(
    outcomes: Iterable[dist.TorchDistribution],
    x: Any,
    y: Tensor,
    statistics: Sequence[str] | None = None,
    *,
    own: Mapping[str, Statistic] | None = None,
    discrepancies: Mapping[str, Discrepancy] | None = None,
    each: int = 1,
    shift: float | Sequence[float] = 0.0,
    scale: float | Sequence[float] = 1.0,
    seed: int = 0,
    source: str = "draws",
) -> tuple[Check, ...]:
    """Checks of y `(n, ...)` (regression: in the data's units) against draws of the distribution of y given every row of x.

    outcomes: one distribution of shape `(n, ...)` for each draw of the network, in the units it was trained in. statistics:
    built-in ones by name (`CLASSES`, `TARGETS`); None is all that the likelihood has, () none. own, discrepancies: yours, by
    name. A discrepancy compares D(y_r, x, draw r) with D(y, x, draw r); its p-values lie nearer 1/2 than uniform ones do. each:
    replicates of every draw. shift, scale: of the targets. seed: of the replicates; torch's own stream does not move.

    Raises ValueError for names that are not there, for targets of another shape or outside the likelihood's support, and for
    built-in statistics of a likelihood that has no finite mean and standard deviation.
    """
    own, discrepancies = dict(own or {}), dict(discrepancies or {})
    if each < 1:
        raise ValueError(f"expected each of at least 1, got {each}: replicates of every draw")
    units = Mixture([], shift, scale)
    drawn: list[Tensor] = []
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in discrepancies}
    sums = _Sums()
    with seeded(seed):
        for outcome in outcomes:
            if not drawn:
                y = _fitting(y, outcome, units)
            parameters = parameters_of(outcome).detach()
            drawn.append(outcome.sample(torch.Size([each])).view(each, *y.shape))
            sums.add(parameters, sums.classes if drawn[1:] else _of_classes(outcome))
            if discrepancies:
                own_units = parameters if sums.classes else in_units(parameters, units.shift, units.scale)
                for name, function in discrepancies.items():
                    realised = float(function(y, x, own_units))
                    pairs[name] += [
                        (realised, float(function(_outside(one, units, sums.classes), x, own_units))) for one in drawn[-1]
                    ]
    if not drawn:
        raise ValueError("expected one or more draws of the network, got none")
    stack = _outside(torch.cat(drawn), units, sums.classes)
    predicted = sums.predicted(units, _first(x, y))
    found = list(_built_in(predicted, y, stack, statistics, source))
    for name, statistic in own.items():
        found.append(_judged(name, source, float(statistic(y, x)), np.array([float(statistic(r, x)) for r in stack])))
    for name, both in pairs.items():
        realised_all, drawn_all = np.array(both, dtype=np.float64).T
        found.append(_judged(name, source, realised_all, drawn_all))
    return tuple(found)


def _of_classes(outcome: dist.TorchDistribution) -> bool:
    return isinstance(plain(outcome), dist.Categorical | dist.Bernoulli)


def _fitting(y: Tensor, outcome: dist.TorchDistribution, units: Mixture) -> Tensor:
    """y as int64 labels or float64 targets. Raises ValueError where the likelihood cannot give it."""
    classes = _of_classes(outcome)
    if classes and y.is_floating_point() and not torch.equal(y, y.round()):
        raise ValueError("expected whole labels, got probabilities: criticise a model by labels drawn from them")
    y, first = y.long() if classes else y.double(), Mixture([outcome])
    first.shift, first.scale = units.shift, units.scale
    first.log_probs(y)
    return y


def _outside(drawn: Tensor, units: Mixture, classes: bool) -> Tensor:
    """Draws of the likelihood in the data's units."""
    return drawn.long() if classes else drawn.double() * units.scale + units.shift


class _Sums:
    """Of predicted parameters over draws: probabilities, or means and variances (by Welford's steps, so that a mean far from zero
    costs no digits)."""

    def __init__(self) -> None:
        self.count, self.classes = 0, False
        self.middle, self.within, self.between = (torch.zeros((), dtype=torch.float64) for _ in range(3))

    def add(self, parameters: Tensor, classes: bool) -> None:
        self.count, self.classes = self.count + 1, classes
        mean = parameters if classes else parameters[..., 0]
        gap = mean - self.middle
        self.middle = self.middle + gap / self.count
        if not classes:
            self.between, self.within = self.between + gap * (mean - self.middle), self.within + parameters[..., 1] ** 2

    def predicted(self, units: Mixture, first: Floats | None) -> Predicted:
        if self.classes:
            return Predicted(self.middle.reshape(-1, self.middle.shape[-1]).numpy(), np.empty(0), np.empty(0), first)
        sd = ((self.within + self.between) / self.count).sqrt() * units.scale
        return Predicted(None, (self.middle * units.scale + units.shift).flatten().numpy(), sd.flatten().numpy(), first)


def _built_in(
    predicted: Predicted, y: Tensor, stack: Tensor, names: Sequence[str] | None, source: str
) -> Iterator[Check]:
    """The statistics of this kind of likelihood, by name."""
    table = TARGETS if predicted.probs is None else CLASSES
    given = names is not None
    wanted = list(names) if names is not None else [n for n in table if n != "spread over input" or predicted.first is not None]
    for name in wanted:
        if name not in table:
            raise ValueError(f"expected statistics of {', '.join(table)}, got {name!r}: give your own by own={{name: T}}")
    if wanted and predicted.probs is None and not (np.isfinite(predicted.mean).all() and np.isfinite(predicted.sd).all()):
        way = "name none of them, statistics=(), " if given else "statistics=() "
        raise ValueError(f"expected a likelihood with a finite mean and sd, got none: {way}and give your own by own=")
    rows, drawn = y.flatten().double().numpy(), stack.flatten(1).double().numpy()
    parts = np.array_split(drawn, max(1, min(len(drawn), drawn.size // HELD)))
    for name in wanted:
        with np.errstate(divide="ignore", invalid="ignore"):
            observed, many = table[name](rows, predicted), [table[name](part, predicted) for part in parts]
        if isinstance(observed, list):
            for index, value in enumerate(observed):
                yield _judged(f"{name}[{index}]", source, value, np.concatenate([one[index] for one in many]))
        else:
            yield _judged(name, source, observed, np.concatenate(many))


def _judged(name: str, source: str, observed: Any, replicated: Floats) -> Check:
    """observed: a number, or `(R,)` of a discrepancy."""
    observed, count = np.asarray(observed, dtype=np.float64), len(replicated)
    upper = float(1 + np.count_nonzero(~(replicated < observed))) / (count + 1)
    lower = float(1 + np.count_nonzero(~(replicated > observed))) / (count + 1)
    smaller = min(upper, lower)
    error = 2 * float(np.sqrt(smaller * (1 - smaller) / count))
    realised = observed if observed.ndim else None
    return Check(name, float(observed.mean()), replicated, min(1.0, 2 * smaller), upper, lower, error, source, realised)


def _first(x: Any, y: Tensor) -> Floats | None:
    """The first input of every number of y."""
    if not isinstance(x, Tensor) or len(x) != len(y) or not x[0].numel():
        return None
    return np.repeat(x.flatten(1)[:, 0].cpu().double().numpy() if x.dim() > 1 else x.double().numpy(), y[0].numel())


def posterior_check(
    fit: Fit,
    x: Rows | Any,
    y: Tensor,
    statistics: Sequence[str] | None = None,
    *,
    own: Mapping[str, Statistic] | None = None,
    discrepancies: Mapping[str, Discrepancy] | None = None,
    how: How | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> tuple[Check, ...]:
    """Posterior predictive checks of a fit on rows x with y `(n, ...)` (regression: in the data's units, `data.in_units(y)`).

    how: by default `fit.posterior`. Each replicate has a draw of the network of its own with `redraw`; the few of other ways are
    taken in turn, equally often, so that there may be up to a draw's worth more. Give held-out rows: see the module. The rest,
    and what is raised, as in `predictive_check`.
    """
    if replicates < 1:
        raise ValueError(f"expected replicates of at least 1, got {replicates}: data sets to draw")
    how = how or fit.posterior
    if how == "moments":
        raise ValueError("expected a way to predict by networks, whose rows vary together, got moments: take redraw")
    draws = {"redraw": replicates, "pairs": len(fit.pairs.values)}.get(how, 1)
    shift, scale = fit.record.get("target", (0.0, 1.0))
    return predictive_check(
        fit.outcomes(x, how, num_samples=draws, seed=seed), x, torch.as_tensor(y), statistics, own=own,
        discrepancies=discrepancies, each=-(-replicates // draws), shift=shift, scale=scale, seed=seed,
        source=f"posterior, {how}",
    )  # fmt: skip


def prior_check(
    model: BayesianNetwork | Fit,
    x: Rows | Any,
    y: Tensor,
    statistics: Sequence[str] | None = None,
    *,
    topology: Topology | None = None,
    own: Mapping[str, Statistic] | None = None,
    discrepancies: Mapping[str, Discrepancy] | None = None,
    replicates: int = REPLICATES,
    shift: float | Sequence[float] = 0.0,
    scale: float | Sequence[float] = 1.0,
    seed: int = 0,
) -> tuple[Check, ...]:
    """Prior predictive checks: for each replicate, weights from `prior_weights`, then y at its `prior_outcomes` (Box 1980).

    model: a network's prior, or the one that a fit was trained under, on its topology and in its targets' units. topology: of a
    network the prior of a sparse net, as `fit.topology` is; None is the dense prior, all weights drawn. shift and scale: of a
    network the targets', `data.target_shift` and `data.target_scale`. The rest, and what is raised, as in
    `predictive_check`.
    """
    if replicates < 1:
        raise ValueError(f"expected replicates of at least 1, got {replicates}: data sets to draw")
    if isinstance(model, Fit):
        topology = model.topology if topology is None else topology
        shift, scale = model.record.get("target", (0.0, 1.0))
    outcomes = prior_outcomes(model, x, topology, draws=replicates, seed=seed)
    of = "dense" if topology is None else f"{topology.num_active} of {topology.num_weights} weights"
    return predictive_check(
        outcomes, x, torch.as_tensor(y), statistics, own=own, discrepancies=discrepancies, shift=shift, scale=scale, seed=seed,
        source=f"prior, {of}",
    )  # fmt: skip


def check_pictures(checks: Iterable[Check]) -> tuple[Replicated, ...]:
    """The picture of each check as data; `espalier.pictures.replicated` draws them."""
    return tuple(
        Replicated(one.name, one.replicated, one.observed, one.p_value)
        if one.realised is None
        else Replicated(f"{one.name}: replicated minus realised", one.replicated - one.realised, 0.0, one.p_value)
        for one in checks
    )

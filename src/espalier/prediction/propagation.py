"""The way to predict `moments`: what all masks of a posterior say together, by one pass of means and variances.

The weights' moments (`of_weights`) go through the network by the rules of `moments.py`; its outputs' means and variances make
normal outputs, of which any number are laid out evenly (`normals`). They cost no pass, and from them everything follows that
follows from draws: mean probabilities, intervals, mutual information.

What the rules take for independent is not, quite, and by how much the network itself says (`equip`): each layer's variance is put
right by one factor, the mean variance of its outputs over `MASKS` masks at `ROWS` training inputs over the one that was computed,
layer after layer. Batch norm whose statistics are those of each mask takes away what a mask does to all inputs alike; its factor
says how much. Of classes the outputs' variance has a factor more, by which the mean probabilities are closest to those of the
masks. No labels, no gradients, and a number a layer cannot overfit. Derived for this project; Wu et al. 2019, *Deterministic
variational inference*, keep covariances instead; Postels et al. 2019, *Sampling-free epistemic uncertainty*, go without either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from espalier import nested
from espalier.compiled import uncompiled
from espalier.contracts import Data
from espalier.likelihoods import plain
from espalier.network import BayesianNetwork, evaluating
from espalier.prediction import batchnorm
from espalier.prediction.attention import ATTENTION
from espalier.prediction.moments import NORMS, PRODUCTS, Moments, Unknown
from espalier.prediction.pairs import State
from espalier.prediction.predict import NUMBERS, exact, parameters_of, sent, to_device
from espalier.randomness import forked
from espalier.sparse import Unwritten, scatter
from espalier.sparse.trial import alone

if TYPE_CHECKING:
    from espalier.prediction.fit import Fit

MASKS, ROWS = 32, 128
"""That the factors are found by."""
LOOKED_AT = 1 << 18
"""Outputs of a layer, at most, that its factor is a mean over: evenly spaced ones."""
EACH = 8
"""Outputs for each draw of `redraw` that is asked for: they cost no pass."""
EXPECTED = 0.5
"""How far a layer's factor is from 1, before it is measured: a standard deviation."""
WIDEST = 3.0
"""Of the last factor, e to the +- this."""
MOST_DIMENSIONS = torch.quasirandom.SobolEngine.MAXDIM


class AtLayers(TorchFunctionMode):
    """While it is entered, `visit` sees what every product, attention and normalisation gives, with its place among them, and
    says what is to go on from there. weight: the last masked one by its moments, None before there was any."""

    def __init__(self, visit: Callable[[int, Tensor], Tensor]) -> None:
        super().__init__()
        self.visit, self.seen = visit, 0
        self.weight: Moments | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.__name__.strip("_") not in (*PRODUCTS, *ATTENTION, *NORMS):
            return found
        self.seen += 1
        masked = [own for own in args if isinstance(own, Moments) and own.ratio is not None]
        self.weight = max(masked, key=Moments.numel) if masked else self.weight  # not its bias
        if isinstance(found, tuple):  # and weights of the attention
            return self.visit(self.seen - 1, found[0]), *found[1:]
        return self.visit(self.seen - 1, found)


def scaled(factor: Callable[[int, Tensor], float]) -> AtLayers:
    """Each layer's variance by its factor, which is told the layer's place and the variance."""

    def visit(place: int, output: Tensor) -> Tensor:
        if isinstance(output, Moments):
            output.variance.mul_(factor(place, output.variance))
        return output

    return AtLayers(visit)


def why_not(fit: Fit, how: str) -> str:
    """Why a fit does not predict by `moments` or `distilled`, as far as it is known."""
    known = {"moments": fit.record.get("moments", {}).get("unknown", ""), "distilled": fit.record.get("refused", "")}
    reason = known.get(how, "")
    return f": {reason}" if reason else ""


def by_factors(factors: Sequence[float]) -> AtLayers:
    """Each layer's variance by its factor; whoever enters it asks whether it has `seen` as many."""
    return scaled(lambda place, _: factors[place] if place < len(factors) else 1.0)


def of_weights(fit: Fit) -> tuple[Moments, State]:
    """Of the flat weight vector `(num_weights,)` under all draws of `redraw`, with the other state that the mean network has."""
    last, probs, factor = fit.pairs.values[-1], fit.probs, fit.scale
    state = {**fit.pairs.state(-1), **fit.statistics["mean"]}
    if fit.pairs.scales is not None:
        values, spread = last * factor, (fit.pairs.scales[-1] * factor).square()
        return Moments(fit.dense(values), fit.dense(spread)), state
    each = fit.keep_prob if isinstance(fit.keep_prob, tuple) else (fit.keep_prob,) * len(fit.topology.counts)
    values = last * (probs * factor)
    spread = (last * factor).square() * (probs * (1 - probs))
    return Moments(fit.dense(values), fit.dense(spread), tuple((1 - p) / p for p in each)), state


def products(fit: Fit) -> int:
    """Products of a layer in a pass: of means, and of masked weights' variances one, of Gaussian ones' two (of the first layer,
    whose inputs are known, one)."""
    return 2 if fit.pairs.scales is None else 3


@torch.no_grad()
def propagate(model: BayesianNetwork, weights: Moments, x: Any, state: Mapping[str, Tensor], layers: AtLayers) -> Moments:
    """The network's output `(n, ...)` by its moments, of one batch. Raises Unknown where it has a function without a rule, or
    gives something else than one tensor."""
    with evaluating(model), uncompiled(model), _as_it_was(model.net), layers:
        output = model.evaluate(weights, x, state)
    if not isinstance(output, Moments):
        raise Unknown("an output without masks" if isinstance(output, Tensor) else "several outputs")
    return output


@contextmanager
def _as_it_was(net: nn.Module) -> Iterator[None]:
    """A network that keeps what it computed, keeps none of it: moments cannot be copied with it."""
    before = [(module, dict(vars(module))) for module in net.modules()]
    try:
        yield
    finally:
        for module, kept in before:
            for name in [name for name, value in vars(module).items() if isinstance(value, Moments)]:
                vars(module).pop(name)
                vars(module).update({name: kept[name]} if name in kept else {})


def equip(fit: Fit, data: Data) -> None:
    """Find each layer's factor, so that the fit predicts by `moments`. In the record under that name: `factors`, and how they
    were found; or what stands in the way as `unknown`. A fit whose draws are one network has no use for it.

    data: the first of its training inputs are looked at. Training does this; a run of an earlier version is given it by you."""
    if fit.is_one("redraw"):
        return
    device = fit.topology.positions.device
    numbers = sum(leaf.numel() for leaf in nested.leaves(data.example()))
    rows = torch.arange(min(ROWS, len(data.train.y), max(2, NUMBERS // max(1, numbers))))
    try:
        with forked(device):  # a network may draw by itself
            factors = _factors(fit, to_device(data.train.x[rows], device))
    except Exception as reason:  # whatever a network of the user's own does with what is no plain tensor: the training is over
        fit.record["moments"] = {"unknown": str(reason) if isinstance(reason, Unknown) else f"{type(reason).__name__}: {reason}"}
        return
    fit.record["moments"] = {"factors": factors, "rows": len(rows), "masks": MASKS, "forward_examples": len(rows) * MASKS}


@torch.no_grad()
def _factors(fit: Fit, x: Any) -> list[float]:
    """Of every product and normalisation, and last of the output: by its variance, which sums and products of what is independent
    have less of than the rules say, and then of classes by what is predicted."""
    weights, state = of_weights(fit)
    _check(fit, weights, nested.each(lambda leaf: leaf[:2], x), state)
    by_batch = batchnorm.has_batchnorm(fit.model) and fit.record.get("batchnorm") != "running"
    (*told, at_output), predicted = _drawn(fit, x, by_batch)
    if by_batch:  # as the masks were
        state = batchnorm.estimate(fit.model, weights.loc, state, [x])
    factors, measured = [1.0] * len(told), [1.0] * len(told)

    def factor(place: int, variance: Tensor) -> float:
        computed = _some(variance).sum()
        if computed > 0 and place < len(told):
            share, measured[place] = trust(layers.weight), float(told[place] / computed)
            factors[place] = share * measured[place] + 1 - share
        return factors[min(place, len(told) - 1)]

    layers = scaled(factor)
    output = propagate(fit.model, weights, x, state, layers)
    if layers.seen != len(told) or not all(map(math.isfinite, factors)):
        raise Unknown("layers that are not the same ones at each call")
    if not (output.loc.isfinite().all() and output.variance.isfinite().all()):
        raise Unknown("outputs that are no numbers")
    computed = float(_some(output.variance).sum())
    # 1 but where sums or products follow the last layer, of whose own factor not all may be believed.
    last = float(at_output) / computed * (factors[-1] / measured[-1]) if computed > 0 and measured[-1] > 0 else 1.0
    output = Moments(output.loc, output.variance * last)
    return [*factors, last if predicted is None else last * _closest(fit, output, state, predicted)]


def trust(weight: Moments | None) -> float:
    """How much of a layer's measured factor is believed, for 1 in its place: v / (v + r), v = `EXPECTED`^2 and r the relative
    variance that masks which seldom drop anything leave in a variance over `MASKS` of them, k / (`MASKS` n). k = 1 / pq - 6 is
    the excess kurtosis of a Bernoulli number, n = (sum u^2)^2 / sum u^4 how many weights there are of equal size. At a rate at
    which 32 masks drop nothing the variance is not 0."""
    if weight is None:
        return 1.0
    p = 1 / (1 + float(weight.ratio))
    own = weight.variance
    squares = (own.active if isinstance(own, Unwritten) else own).double()  # zeros count for nothing
    count = float(squares.sum() ** 2 / squares.square().sum().clamp_min(torch.finfo(torch.float64).tiny))
    noise = max(0.0, 1 / max(p * (1 - p), 1e-12) - 6) / (MASKS * max(count, 1.0))
    return EXPECTED**2 / (EXPECTED**2 + noise)


def _check(fit: Fit, weights: Moments, x: Any, state: State) -> None:
    """Raises Unknown where a function has no rule, and where without variance something else comes out than of the mean network:
    it may write into views, say."""
    nothing = fit.dense(torch.zeros_like(fit.pairs.values[-1]))
    still = Moments(weights.loc, nothing, weights.ratio and (0.0,) * len(weights.ratio))
    found = propagate(fit.model, still, x, state, scaled(lambda *_: 1.0)).loc
    with evaluating(fit.model), uncompiled(fit.model):
        told = fit.model.evaluate(weights.loc, x, state)
    if not isinstance(told, Tensor) or not torch.allclose(found, told, rtol=1e-3, atol=1e-4 * (1 + float(told.abs().max()))):
        raise Unknown("something that is not a function of its layers alone")


def _closest(fit: Fit, output: Moments, state: State, predicted: Tensor) -> float:
    """The factor of the outputs' variance that has the least cross-entropy from the probabilities that masks `predicted`, plus
    I (log factor)^2 / `MASKS`, I the mutual information that is computed, nats: the noise of so many masks, without which a
    posterior that hardly moves its mean would have any factor at all."""
    rows, predicted = max(1, LOOKED_AT // 2 // max(1, predicted[0].numel())), predicted.to(output.loc.device)
    output, predicted = Moments(output.loc[:rows], output.variance[:rows]), predicted[:rows]
    points, together = points_for(output.loc, EACH * MASKS), max(1, LOOKED_AT // max(1, output.loc.numel()))

    def looked(log_factor: float) -> tuple[Tensor, Tensor]:
        """Mean probabilities, and the mean of their entropies."""
        mean, entropy = torch.zeros_like(predicted), predicted.new_zeros(())
        deviation = (output.variance * math.exp(log_factor)).sqrt()
        for some in points.split(together):
            laid_out = output.loc + deviation * some.reshape(-1, *[1] * (deviation.dim() - 1), some.shape[-1])
            own = parameters_of(_said(fit, laid_out.flatten(0, 1), state)).unflatten(0, (len(some), -1))
            mean = mean + own.sum(0) / len(points)
            entropy = entropy + torch.special.entr(own).sum(-1).flatten(1).mean(1).sum() / len(points)
        return mean, entropy

    mean, entropy = looked(0.0)
    noise = float(torch.special.entr(mean).sum(-1).mean() - entropy) / MASKS

    def distance(log_factor: float) -> float:
        mean, _ = looked(log_factor)
        return float(-(predicted * mean.clamp_min(1e-30).log()).sum(-1).mean()) + noise * log_factor**2

    return math.exp(minimize_scalar(distance, bounds=(-WIDEST, WIDEST), method="bounded", options={"xatol": 0.01}).x)


def _drawn(fit: Fit, x: Any, by_batch: bool) -> tuple[list[Tensor], Tensor | None]:
    """Of every product and normalisation, and last of the output, the variance over masks, summed over `_some` of its numbers
    (Welford 1962); and of classes the mean probabilities. by_batch: batch norm by each mask's statistics on these rows."""
    means: list[Tensor] = []
    squares: list[Tensor] = []
    predicted: Tensor | None = None
    number = 0

    def visit(place: int, output: Tensor) -> Tensor:
        own = _some(output)
        if place == len(means):
            means.append(torch.zeros_like(own))
            squares.append(own.new_zeros(()))
        off = own - means[place]
        means[place] = means[place] + off / number
        squares[place] += (off * (own - means[place])).sum()
        return output

    positions, total = fit.topology.positions, fit.topology.num_weights
    for values in fit.redrawn(MASKS):
        number, weights = number + 1, scatter(values, positions, total)  # written out, or it would be tried under our eyes
        state = {name: tensor.clone() for name, tensor in fit.pairs.state(-1).items()}
        layers = AtLayers(visit)
        with batchnorm.by_the_batch(fit.model) if by_batch else evaluating(fit.model), uncompiled(fit.model), layers:
            output = fit.model.evaluate(weights, x, state)
        visit(layers.seen, output)
        outcome = _said(fit, exact(output.detach(), torch.device("cpu")), state)
        if isinstance(plain(outcome), dist.Categorical | dist.Bernoulli):
            own = parameters_of(outcome) / MASKS
            predicted = own if predicted is None else predicted + own
    return [square / (MASKS - 1) for square in squares], predicted


def _some(output: Tensor) -> Tensor:
    """Evenly spaced ones of its numbers, `LOOKED_AT` at most."""
    return output.detach().reshape(-1)[:: max(1, -(-output.numel() // LOOKED_AT))].double()


def normals(count: int, dimensions: int, seed: int = 0) -> Tensor:
    """Standard normal points `(count, dimensions)`, float64: a scrambled Sobol sequence (Owen 1998), of mean 0 and of variance 1
    over the points in every dimension, so that a mixture over them has the moments that it is to have."""
    engine = torch.quasirandom.SobolEngine(min(dimensions, MOST_DIMENSIONS), scramble=True, seed=seed % (1 << 62))
    uniform = engine.draw(count, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    points: Tensor = torch.special.ndtri(uniform)
    points -= points.mean(0)
    points /= points.square().mean(0).sqrt().clamp_min(1e-9)
    return points[:, torch.arange(dimensions) % engine.dimension]


def points_for(output: Tensor, count: int, seed: int = 0) -> Tensor:
    """`normals` for outputs `(n, ...)`: one for each place of their last dimension, on their device."""
    return sent(normals(count, output.shape[-1] if output.dim() > 1 else 1, seed), output.device)


def outcomes(
    fit: Fit, batches: Iterable[Any], *, count: int, seed: int, on_device: bool = False
) -> Iterator[dist.TorchDistribution]:
    """The distribution of y given every row, at `count` outputs that are laid out evenly: one pass for all of them. float64."""
    weights, state = of_weights(fit)
    device = weights.device if on_device else torch.device("cpu")
    *factors, last = fit.record["moments"]["factors"]
    loc, variance = [], []
    for batch in batches:
        layers = by_factors(factors)
        found = propagate(fit.model, weights, batch, state, layers)
        if layers.seen != len(factors):
            raise ValueError(
                f"expected {len(factors)} layers, of which factors of moments were found, got {layers.seen} at these rows: "
                "espalier.prediction.equip(fit, data) finds them anew"
            )
        loc.append(exact(found.loc, device))
        variance.append(exact(found.variance, device) * last)
    yield from _laid_out(fit, Moments(torch.cat(loc), torch.cat(variance)), state, count, seed)


def _laid_out(fit: Fit, output: Moments, state: State, count: int, seed: int) -> Iterator[dist.TorchDistribution]:
    loc, deviation = output.loc, output.variance.sqrt()
    for point in points_for(loc, count, seed):
        yield _said(fit, loc + deviation * point, state)


def _said(fit: Fit, output: Tensor, state: State) -> dist.TorchDistribution:
    with alone(fit.model), pyro.validation_enabled(not output.is_cuda):  # which would wait for the GPU: see `predict.fetched`
        outcome: dist.TorchDistribution = fit.model.says(output, state)
    return outcome

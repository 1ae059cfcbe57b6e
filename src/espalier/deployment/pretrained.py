"""An exported folder as a plain `nn.Module`: rows as the user has them in, what the likelihood says of them out.

Nothing in the folder is run. A network is built by a program of this installation's shelf, or is the caller's own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from espalier import nested, shelf, store
from espalier.contracts import dtype_of, stand_ins
from espalier.data.archives import check_memory
from espalier.deployment.hub import CONFIG, WEIGHTS, folder_of
from espalier.deployment.spread import Spread
from espalier.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    Likelihood,
    Normal,
    WithUnknown,
    one_column,
    said_of,
)
from espalier.network import BayesianNetwork, Output, under
from espalier.prediction import recognised
from espalier.prediction.moments import Moments
from espalier.prediction.predict import in_units, parameters_of
from espalier.randomness import forked
from espalier.sparse import Sparse, scatter, sparsified
from espalier.sparse.layout import MIN_ROWS
from espalier.store import Bundle
from espalier.topology import codes

FORMAT, WITH_SPREAD = 1, 2
"""Of a folder: one network, or its moments, which earlier versions do not know."""
NET, LIKELIHOOD, SPREAD = "network.", "likelihood.", "spread."
"""What the names of tensors begin with, in the file as in a `Deployed`."""
VALUES, VARIANCES = "values", "variances"
"""Of all active weights together, at the positions in the file."""


class Inputs(nn.Module):
    """Rows as the user has them, uint8 images or unstandardised columns, as the network takes them: (x - mean) / sd of every
    channel or feature, in float64, so that a column like a year keeps its digits, then in the network's dtype.

    shape: of a row, or a tuple or dict of such; scales: of each `{"dtype", "mean", "sd"}`, the latter two where it is scaled.
    """

    def __init__(self, shape: Any, scales: Any) -> None:
        super().__init__()
        self.shape, self.dtypes = shape, list[torch.dtype]()
        self.places = nested.by_shape(self._keep, shape, scales)

    def _keep(self, shape: Sequence[int], scale: Mapping[str, Any]) -> int:
        for name in ("mean", "sd"):
            values = torch.tensor(scale[name], dtype=torch.float64) if name in scale else None
            own = None if values is None else values.view(-1, *[1] * (len(shape) - 1))
            self.register_buffer(f"{name}_{len(self.dtypes)}", own, persistent=False)
        self.dtypes.append(dtype_of(scale["dtype"]))
        return len(self.dtypes) - 1

    def forward(self, x: Any) -> Any:
        return nested.by_shape(self._taken, self.shape, x, self.places)

    def _taken(self, shape: Sequence[int], x: Tensor, place: int) -> Tensor:
        if not isinstance(x, Tensor):
            raise ValueError(f"expected a tensor of rows, got a {type(x).__name__}: torch.as_tensor(numpy.asarray(x))")
        if list(x.shape[1:]) != list(shape):
            raise ValueError(f"expected rows of shape (n, {', '.join(map(str, shape))}), got {tuple(x.shape)}")
        mean, sd = getattr(self, f"mean_{place}"), getattr(self, f"sd_{place}")
        if mean is not None:
            x = (x.double() / 2 - mean / 2) / (sd / 2)  # of halves no difference overflows
        return x.to(self.dtypes[place])


COLUMNS = (Bernoulli, Normal)
OURS = (Categorical, WithUnknown, *COLUMNS)


class Deployed(nn.Module):
    """`module(x)`: of rows as the user has them the class probabilities `(n, C)`, or of a regression mean and standard deviation
    `(n, 2)`, in the data's units; as `Fit.predict` says them, float64 from the network's output on.

    Of a fit's `moments` it is the mean over outputs that are laid out, at one pass, and `with_doubt` says what they differ by.

    inputs: the preprocessing. network: the plain network. config: what config.json says. classes: names, in the order of the
    probabilities; empty for a regression. spread: what the weights vary by, None of one network.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        inputs: Inputs,
        network: nn.Module,
        likelihood: Likelihood,
        output: Output | None,
        config: dict[str, Any],
        spread: Spread | None = None,
    ) -> None:
        super().__init__()
        self.inputs, self.network, self.likelihood, self.output, self.config = inputs, network, likelihood, output, config
        self.spread = spread
        for name, value in zip(("shift", "scale"), config["target"], strict=True):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64), persistent=False)

    @property
    def classes(self) -> list[Any]:
        return list(self.config["classes"])

    def extra_repr(self) -> str:
        said = self.config["weights"]
        return f"{said['num_active']:,} of {said['num_weights']:,} weights active ({said['way']})"

    def forward(self, x: Any) -> Tensor:
        return self._together(self.draws(x))

    def with_doubt(self, x: Any) -> tuple[Tensor, Tensor]:
        """What `forward` says, and of every row what the laid-out outputs differ by: of classes their mutual information, nats,
        of a regression the standard deviation of their means. Raises ValueError for one network, which says nothing of that."""
        if self.spread is None:
            way = self.config["weights"]["way"]
            raise ValueError(f"expected an export of moments to say what its weights leave open, got one network, {way}")
        draws = self.draws(x)
        said = self._together(draws)
        if self.config["task"] == "regression":
            return said, draws[..., 0].var(0, unbiased=False).sqrt()
        apart = torch.special.entr(said).sum(-1) - torch.special.entr(draws).sum(-1).mean(0)
        return said, apart.clamp_min(0.0)

    def draws(self, x: Any) -> Tensor:
        """Of every laid-out output what `forward` says of one: `(S, n, C)` or `(S, n, 2)`, all in memory at a time and without
        gradients; of one network S is 1."""
        arguments, keywords = nested.arguments(self.inputs(x))
        if self.spread is None:
            found = self._picked(self.network(*arguments, **keywords))
            found = nested.each(lambda part: part.double() if part.is_floating_point() else part, found)
            return self._says(one_column(found) if type(self.likelihood) in COLUMNS else found)[None]
        with torch.no_grad() if torch.is_grad_enabled() else nullcontext():  # rules of moments write in place
            output = self.spread.moments(self.network, arguments, keywords, self._picked)
            if type(self.likelihood) in COLUMNS:
                output = Moments(one_column(output.loc), one_column(output.variance))
            outputs = self.spread.laid_out(output)
            return self._says(outputs) if type(self.likelihood) in OURS else torch.stack([*map(self._says, outputs)])

    def _picked(self, found: Any) -> Any:
        if self.output is None:
            return found
        return self.output(found) if callable(self.output) else found[self.output]

    def _together(self, draws: Tensor) -> Tensor:
        """The even mixture of draws: its probabilities, or its mean and standard deviation (the law of total variance)."""
        if len(draws) == 1:
            return draws[0]
        if self.config["task"] != "regression":
            return draws.mean(0)
        means, deviations = draws.unbind(-1)
        return torch.stack([means.mean(0), (deviations.square().mean(0) + means.var(0, unbiased=False)).sqrt()], -1)

    def _says(self, output: Any) -> Tensor:
        """`parameters_of` the likelihood at an output, or at several of one of ours, whose single column is none; of ours without
        a distribution in between, which cannot be exported."""
        likelihood: Any = self.likelihood
        kind = type(likelihood)  # one derived from ours may say anything
        if kind is Categorical:
            return torch.softmax(output, -1)
        if kind is WithUnknown:
            return torch.softmax(output[..., :-1], -1)
        if kind is Bernoulli:
            return torch.stack([torch.sigmoid(-output), torch.sigmoid(output)], -1)
        if kind is Normal:
            sd = torch.exp(-0.5 * likelihood.log_precision.double()).expand_as(output)
            return self._in_units(torch.stack([output, sd], -1))
        said = parameters_of(said_of(likelihood, likelihood, output))
        return self._in_units(said) if self.config["task"] == "regression" else said

    def _in_units(self, parameters: Tensor) -> Tensor:
        return in_units(parameters, self.shift, self.scale)


def from_pretrained(
    source: str | Path,
    *,
    network: nn.Module | None = None,
    sparse: Sparse = False,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> Deployed:
    """The network in an exported folder, or of a hub's id `owner/name`, as a plain module in evaluation mode (`Deployed`).

    network: how it is built, where no program of the shelf does: a module like the one that was trained, or, where the likelihood
    or `output` are of one's own too, a `BayesianNetwork` of it; it is copied. sparse: Linear layers without their zeros, on the
    CPU (`espalier.sparse.sparsified`). revision, token, endpoint: of the hub.

    Raises ValueError, in one sentence, for files that are cut short, altered or of another network, or where `network` is needed.
    """
    folder = folder_of(source, revision=revision, token=token, endpoint=endpoint)
    config, bundle = read(folder)
    module = assembled(config, bundle, network)
    if network is not None:
        recognised.check(told(module), config.get("told"), "were exported")
    if module.spread is not None:
        if sparse is True:
            raise ValueError(f"expected one network to leave the zeros out of, but {source} is of moments: leave it dense")
        return module
    module.network = sparsified(module.network, stand_ins(config, MIN_ROWS), sparse)
    return module


def examples(config: Mapping[str, Any], count: int, seed: int = 0) -> Any:
    """Made-up rows as a user has them: of the mean and sd that inputs are scaled by."""

    def raw(shape: Any, drawn: Tensor, own: dict[str, Any]) -> Tensor:
        if "mean" not in own:
            return drawn
        mean, sd = (torch.tensor(own[name]).view(-1, *[1] * (len(shape) - 1)) for name in ("mean", "sd"))
        return (drawn * sd + mean).float()

    return nested.by_shape(raw, config["shape"], stand_ins(config, count, seed), config["inputs"])


@torch.no_grad()
def told(module: Deployed) -> list[float] | None:
    """What a module says of made-up rows, for config.json: networks of the same tensors are told apart by it."""
    return recognised.numbers_of(lambda: module(examples(module.config, recognised.ROWS)))


def read(folder: Path) -> tuple[dict[str, Any], Bundle]:
    """What config.json says, and the weights beside it. Raises ValueError where they are not whole, or not of this package."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"expected an exported folder, but {folder} has no {name}: `espalier export` makes one")
    config = store.read_json(folder / CONFIG)
    config = config if isinstance(config, dict) else {}
    told = {name: found if isinstance(found := config.get(name), dict) else {} for name in ("espalier", "weights")}
    form = told["espalier"].get("format")
    varying = "moments" in config
    if form != (WITH_SPREAD if varying else FORMAT) or (told["weights"].get("way") == "moments") != varying:
        known = f"format {FORMAT}, or {WITH_SPREAD} of moments"
        raise ValueError(f"expected {folder / CONFIG} as `espalier export` writes it, {known}, got {form}")
    if "sha256" in config or varying:  # of what was exported earlier there is none
        config = store.check_signed(folder / CONFIG)
    if store.sha256((folder / WEIGHTS).read_bytes()) != told["weights"].get("sha256"):
        raise ValueError(f"expected {folder / WEIGHTS} as it was exported, but its SHA-256 differs: it was altered")
    return config, store.read_bundle(folder / WEIGHTS)


class Built(NamedTuple):
    """How an exported network is built again: the plain network, not yet with its weights, and what stands behind it."""

    network: nn.Module
    likelihood: Likelihood
    output: Output | None


def assembled(config: dict[str, Any], bundle: Bundle, network: nn.Module | None = None) -> Deployed:
    """The module of a configuration and its weights. Raises ValueError where they do not belong together."""
    try:
        built = _built(config, network)
        _fill(built.network, bundle)
        if isinstance(built.likelihood, nn.Module):
            built.likelihood.load_state_dict(under(LIKELIHOOD, bundle.tensors))
            built.likelihood.double()  # as what it is handed
        inputs = Inputs(config["shape"], config["inputs"])
        spread = _spread(built.network, config["moments"], bundle) if "moments" in config else None
        module = Deployed(inputs, built.network, built.likelihood, built.output, config, spread).eval()
        return module if spread is None else _laid_out(module, spread)
    except (KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"expected config.json and weights of the same network, but they do not fit ({' '.join(str(error).split())[:300]}): "
            "take both from one export, and a `network=` like the one that was trained"
        ) from error


def _built(config: dict[str, Any], network: nn.Module | None) -> Built:
    own, known = config["network"], config["likelihood"]
    if isinstance(network, BayesianNetwork):
        return Built(network.network(network.initial), copy.deepcopy(network.likelihood), network.output)
    if network is None and "program" not in own:
        raise ValueError(
            f"expected network=, a module like the {own['own']} that was trained: it is not of this package's shelf, and no code "
            "comes with a folder (`espalier predict RUN` has the run's own)"
        )
    if known not in LIKELIHOODS or own.get("output") == "own":
        raise ValueError("expected network= as a BayesianNetwork, as it was trained with a likelihood or output of its own")
    if network is not None:
        return Built(copy.deepcopy(network), LIKELIHOODS[known](), own.get("output"))
    with_unknown = LIKELIHOODS.get(known) is WithUnknown
    model = _from_shelf(own["program"], own["options"], config["shape"], config["num_outputs"] + with_unknown)
    if with_unknown:
        model.likelihood = WithUnknown()
    return Built(model.network(model.initial), copy.deepcopy(model.likelihood), model.output)


def _from_shelf(program: str, options: Mapping[str, Any], shape: Sequence[int], num_outputs: int) -> BayesianNetwork:
    """The program of the installation. A file is never taken for one; how large the network gets is seen beforehand."""
    if program not in shelf.names("models"):
        raise ValueError(f"expected a program of {', '.join(shelf.names('models'))} in config.json, got {program!r}")
    build = shelf.load("models", program)
    words = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    with forked():
        with torch.device("meta"):
            looked_at = build(tuple(shape), num_outputs, **words)
            rest = sum(part.numel() for part in looked_at.state_dict().values())
            check_memory(f"a network {program!r}", looked_at.num_weights + rest, 8)
        model: BayesianNetwork = build(tuple(shape), num_outputs, **words)
    return model


def _fill(net: nn.Module, bundle: Bundle) -> None:
    """Put the tensors into a network. Of tied tensors the file has the first name. Raises ValueError for one that is missing."""
    own = under(NET, bundle.tensors)
    if codes.NAME in bundle.tensors:
        own |= dict(_scattered(net, bundle.facts["masked"], bundle.tensors, VALUES))
    result = net.load_state_dict(own, strict=False)
    state = net.state_dict(keep_vars=True)
    filled = {id(state[name]) for name in own if name in state}
    missing = [name for name, tensor in state.items() if id(tensor) not in filled]
    if result.unexpected_keys or missing:
        what = f"no {missing[0]}" if missing else f"{result.unexpected_keys[0]}, which the network has not"
        raise ValueError(f"expected the tensors of this network in {WEIGHTS}, but it holds {what}")


def _spread(net: nn.Module, told: Mapping[str, Any], bundle: Bundle) -> Spread:
    """Of the masked tensors, by the name that each has first."""
    masked, factors, count = bundle.facts["masked"], told["factors"], told["count"]
    if "ratios" in told:
        if len(told["ratios"]) != len(masked):
            raise KeyError(f"{len(masked)} ratios, got {len(told['ratios'])}")
        return Spread({name: ratio for (name, _), ratio in zip(masked, told["ratios"], strict=True)}, {}, factors, count)
    variances = under(SPREAD, bundle.tensors)
    if codes.NAME in bundle.tensors:
        variances = dict(_scattered(net, masked, bundle.tensors, VARIANCES))
    return Spread({}, {name: variances[name] for name, _ in masked}, factors, count)


@torch.no_grad()
def _laid_out(module: Deployed, spread: Spread) -> Deployed:
    """With points for outputs of the shape that it has."""
    arguments, keywords = nested.arguments(stand_ins(module.config, 2))
    found = spread.moments(module.network, arguments, keywords, module._picked)
    if not torch.isfinite(found.variance).all():
        raise RuntimeError("what its weights vary by is not finite")
    spread.fitted(found)
    return module


def _scattered(
    net: nn.Module, masked: Sequence[Any], tensors: Mapping[str, Tensor], what: str
) -> Iterator[tuple[str, Tensor]]:
    """The masked tensors, written out from values, or variances, at positions. masked: their names and shapes, in the order of
    the positions."""
    state = net.state_dict()
    for name, shape in masked:
        if list(state[name].shape) != shape:
            raise ValueError(f"expected a network with {name} of shape {shape}, got {list(state[name].shape)}")
    names = [name for name, _ in masked]
    sizes = [state[name].numel() for name in names]
    topology, values = codes.from_gaps(tensors[codes.NAME], sizes), tensors[what]
    if values.shape != topology.positions.shape:
        raise ValueError(f"expected {topology.num_active} {what} in {WEIGHTS}, got {tuple(values.shape)}")
    flat = scatter(values, topology.positions, sum(sizes))
    for name, part in zip(names, flat.split(sizes), strict=True):
        yield name, part.view(state[name].shape)

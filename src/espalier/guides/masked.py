"""The guide q(weights | topology): values at the active positions times a Bernoulli keep. The random mask Z lives here.

Everything the guide holds is of length k, the number of active weights: values, positions, Z, and therefore the
optimiser's moments. The distribution scatters values * Z into the network's flat vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import pyro
import torch
from pyro.infer import SVI
from pyro.nn import PyroModule
from torch import Tensor, nn

from espalier.contracts import Move, Topology, counts_of, number
from espalier.distributions.masked import KeepProb, MaskedWeights, draw_keep, effective, in_use, per_weight
from espalier.network import BayesianNetwork
from espalier.sparse import Layout, Tap, Unwritten, scatter
from espalier.topology.masks import relocate

MOST_PARTICLES = 1000
Mask = Literal["weight", "unit", "filter"]
"""What shares a Z: nothing; all weights that leave the same input unit or channel (Gal & Ghahramani 2016); all of a convolution's
filter, which is a channel dropped where it is made (Tompson et al. 2015, SpatialDropout), and elsewhere nothing."""


def groups(positions: Tensor, shapes: Sequence[tuple[int, ...]], mask: Mask) -> tuple[Tensor, int] | None:
    """What shares a Z: of each weight at `positions` `(k,)` its group, `(k,)`, numbered through the layers, and how many there
    are; None where each has its own.

    A layer's shape is (outputs, inputs, ...), as torch's Linear and Conv have it where they have no groups.
    """
    if mask == "weight":
        return None
    sizes, outputs, kernel = (
        torch.tensor(found, device=positions.device)
        for found in ([math.prod(s) for s in shapes], [s[0] for s in shapes], [math.prod(s[2:]) for s in shapes])
    )
    inputs = sizes // (outputs * kernel)
    layer = torch.bucketize(positions, sizes.cumsum(0), right=True)
    local = positions - (sizes.cumsum(0) - sizes)[layer]
    if mask == "unit":
        return local // kernel[layer] % inputs[layer] + (inputs.cumsum(0) - inputs)[layer], int(inputs.sum())
    filters = outputs * torch.tensor([len(shape) > 2 for shape in shapes], device=positions.device)
    alone = filters[layer] == 0
    filter_ = local // (inputs * kernel)[layer] + (filters.cumsum(0) - filters)[layer]
    return torch.where(alone, filters.sum() + alone.cumsum(0) - 1, filter_), int(filters.sum() + alone.sum())


def check_mask(model: BayesianNetwork, mask: Mask) -> None:
    """Raises ValueError for an unknown word, and where Z is shared but a masked tensor's first dimensions are not its outputs and
    the inputs that all of these see."""
    if mask not in get_args(Mask):
        raise ValueError(f"expected a mask per {', '.join(get_args(Mask))}, got {mask!r}")
    for weight in model.weights if mask != "weight" else ():
        owner = model.net.get_submodule(weight.name.rpartition(".")[0])
        table = isinstance(owner, nn.Embedding | nn.EmbeddingBag | nn.Bilinear)
        if len(weight.shape) < 2 or table or getattr(owner, "groups", 1) > 1 or getattr(owner, "transposed", False):
            raise ValueError(
                f"expected Linear layers and plain convolutions for mask {mask}, but {weight.name} of shape {weight.shape} "
                f"belongs to {type(owner).__name__}: choose mask weight, or leave that tensor dense"
            )


def draw_mask(
    positions: Tensor,
    shapes: Sequence[tuple[int, ...]],
    mask: Mask,
    keep_prob: KeepProb,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Z of the weights at `positions` `(k,)`, `(k,)` bool: independent, or one for each of their `groups`."""
    shared = groups(positions, shapes, mask)
    each: float | Tensor
    if isinstance(keep_prob, tuple):
        each = per_weight(keep_prob, counts_of(positions, [math.prod(shape) for shape in shapes]), positions.device)
    else:
        each = keep_prob
    if shared is None:
        return draw_keep(len(positions), each, positions.device, generator)
    if isinstance(each, Tensor):  # all weights of a group are of one layer
        each = each.new_ones(shared[1]).index_copy(0, shared[0], each)
    return draw_keep(shared[1], each, positions.device, generator)[shared[0]]


def check_store(guide: PyroModule, values: nn.Parameter) -> None:
    """Raises ValueError where Pyro's parameter store would give a guide that is trained the `values` of an earlier one."""
    store, name = pyro.get_param_store(), guide._pyro_get_fullname("values")
    if name in store and store[name] is not values and in_use(SVI) is not None:
        raise ValueError(
            "expected this guide's own values, but Pyro's parameter store holds those of an earlier one under their name: "
            "call pyro.clear_param_store() before a new guide is trained"
        )


class MaskedGuide(PyroModule):
    """CigL's variational family (Lei et al. 2023, eq. 3), collapsed: M at its mode, noise scale -> 0, w = scatter(Z * m).

    It is a Pyro guide for `BayesianNetwork`: site `weights`, trained by `TraceMeanField_ELBO` under any optimiser.

    keep_prob: P(Z = 1), of all or a tuple of each layer's; the effective values of 16-bit draws are kept. One draws nothing.
    rescale: component mean m = u / keep_prob instead of u, so that E[w] = u ("inverted dropout").
    mask: 'weight', a Z for each active weight; 'unit', one for all that leave the same input unit; 'filter', one for all of a
        convolution's filter. The KL bound holds for each: it is convex in the mixture, whatever the parts share.
    kl_scale: the one tempering knob, a factor on the KL of the weights; 0 leaves it out.
    num_particles: draws of Z that a step of our loop averages the likelihood of its batch over, each at the price of a step; a
        move of the topology looks at one. (Under Pyro's own SVI it is the ELBO's.)
    microbatches: equal parts of a batch, each with a Z of its own, at the price of one step: a Z that all examples share leaves a
        noise in the gradient which no size of batch averages out (Wen et al. 2018, Flipout, sec. 2). A move looks at one. Batch
        norm sees a part at a time; several processes cut each its own share. (Pyro's own SVI does not know of it.)
    generator: where Z is drawn from; None is torch's default, which `pyro.set_rng_seed` seeds.

    values: parameter u `(k,)`. positions: buffer `(k,)`. keep: the last Z drawn, `(k,)`.
    """

    positions: Tensor

    def __init__(
        self,
        model: BayesianNetwork,
        topology: Topology,
        keep_prob: KeepProb = 1.0,
        *,
        rescale: bool = False,
        mask: Mask = "weight",
        kl_scale: float = 1.0,
        num_particles: int = 1,
        microbatches: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        num_particles, microbatches = number(num_particles, int, "num_particles"), number(microbatches, int, "microbatches")
        rescale, kl_scale = bool(rescale), number(kl_scale, float, "kl_scale")
        if not 1 <= num_particles <= MOST_PARTICLES:
            raise ValueError(f"expected num_particles of 1 to {MOST_PARTICLES}, masks a step, got {num_particles}")
        if microbatches < 1:
            raise ValueError(f"expected at least 1 of microbatches, parts of a batch, got {microbatches}")
        if topology.sizes != model.sizes:
            raise ValueError(f"expected a topology over layers of {model.sizes} weights, got {topology.sizes}")
        if not 0 <= kl_scale < math.inf:
            raise ValueError(f"expected a kl_scale of 0 or more, got {kl_scale}: 0 is no KL of the weights")
        check_mask(model, mask)
        self.counts, self.sizes, self.shapes, self.mask = topology.counts, topology.sizes, model.shapes, mask
        if not isinstance(keep_prob, tuple | int | float):
            raise ValueError(f"expected a keep_prob in (0, 1], or a tuple of one for each layer, got {keep_prob!r}")
        if isinstance(keep_prob, tuple) and (rescale or len(keep_prob) != len(topology.sizes)):
            raise ValueError(
                f"expected one keep_prob, or without rescale one for each of {len(topology.sizes)} layers, got {len(keep_prob)}"
                f"{' with rescale' if rescale else ''}"
            )
        self.keep_prob = effective(keep_prob)
        self.rescale, self.kl_scale, self.generator = rescale, kl_scale, generator
        self.num_particles, self.microbatches = num_particles, microbatches
        self.register_buffer("positions", topology.positions.to(model.initial.device, copy=True))
        self.values = nn.Parameter(model.initial[self.positions].clone())
        self.keep: Tensor | None = None
        self._layout: tuple[Tensor, int, Layout | None] | None = None
        self._probs: tuple[tuple[KeepProb, tuple[int, ...], torch.device, torch.dtype], float | Tensor] | None = None
        self.tapped = False
        self._tap: Tap | None = None

    def asked(self) -> dict[str, Any]:
        """What it was built with, JSON-able: a checkpoint of another is not gone on from. The keep probability, which may be
        found on the way, is not among it."""
        return {name: getattr(self, name) for name in ("mask", "rescale", "kl_scale", "num_particles", "microbatches")}

    @property
    def topology(self) -> Topology:
        """The deterministic mask M that the guide stands on."""
        return Topology(self.positions, self.counts, self.sizes)

    @property
    def scale(self) -> float:
        """Component mean over value: m = scale * u."""
        return 1 / self.keep_prob if self.rescale and isinstance(self.keep_prob, float) else 1.0

    @property
    def probs(self) -> float | Tensor:
        """P(Z = 1) of each active weight: one number, or `(k,)` where layers differ; asked for several times a step."""
        given = self.keep_prob, self.counts, self.positions.device, self.values.dtype
        if self._probs is None or self._probs[0] != given:
            self._probs = given, per_weight(*given)
        return self._probs[1]

    @property
    def layout(self) -> Layout | None:
        """What lets a draw stay unwritten, where that is faster: built once for a topology."""
        version = self.positions._version  # `load_state_dict` writes into them
        if self._layout is None or self._layout[0] is not self.positions or self._layout[1] != version:
            layout = Layout.where_worthwhile(self.positions, counts_of(self.positions, self.sizes), self.shapes)
            self._layout = self.positions, version, layout
        return self._layout[2]

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.counts = counts_of(self.positions, self.sizes)  # of another topology, perhaps

    def placed(self, values: Tensor) -> Tensor:
        """The weights `(num_weights,)` of which these `(k,)` are the active ones: not written out, where that is faster."""
        weights: Tensor = scatter(values, self.positions, sum(self.sizes), self.layout)
        return weights

    def distribution(self) -> MaskedWeights:
        """q(weights) at the present values."""
        mean = self.values * self.scale if self.rescale else self.values
        return MaskedWeights(mean, self.positions, sum(self.sizes), self.probs, self._draw, self.layout)

    def forward(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """The Pyro program: one site, `weights`. The data are not looked at.

        Raises ValueError where Pyro's parameter store would give it the values of an earlier guide, and train those.
        """
        check_store(self, self.values)
        q = self.distribution()
        # Pyro refuses a scale of 0; what is masked is not in its ELBO.
        with pyro.poutine.scale(scale=self.kl_scale) if self.kl_scale else pyro.poutine.mask(mask=False):
            weights: Tensor = pyro.sample("weights", q)
        return self._noted(weights, q)

    def draw(self) -> Tensor:
        """What `forward` samples, without Pyro."""
        q = self.distribution()
        return self._noted(q.rsample(), q)

    def _noted(self, weights: Tensor, q: MaskedWeights) -> Tensor:
        self.keep = q.keep
        if self.tapped:
            self._tap = None
            if isinstance(weights, Unwritten):
                self._tap = Tap(weights.active.new_zeros(len(weights)))
                weights.taps.append(self._tap)
            else:
                weights.register_hook(self._tapped)  # `retain_grad` would copy what it keeps
        return weights

    def gradient(self) -> Tensor:
        """`(num_weights,)`: d(loss)/d(weights) of the last backward pass, after a forward pass with `tapped` set.

        Only the likelihood enters: the KL is a function of the values. The tap is released.
        """
        if self._tap is None or not self._tap.told:
            raise RuntimeError(
                "expected a tapped forward and a backward pass first: set guide.tapped = True before them"
            )
        gradient, self._tap, self.tapped = self._tap.total, None, False
        return gradient

    def _tapped(self, gradient: Tensor) -> None:
        self._tap = Tap(gradient, [None])

    def move(self, move: Move, *optimizers: torch.optim.Optimizer) -> None:
        """Stand on another topology: values and every optimiser moment travel with their weight, grown ones are 0."""
        for name in self.lengthwise():
            old = self.get_parameter(name)
            moved = relocate(old.data, move.source)
            moved[move.source < 0] = self.grown(name)
            for optimizer in optimizers:
                state = optimizer.state.get(old, {})
                for key, moment in state.items():
                    if isinstance(moment, Tensor) and moment.shape == old.shape:
                        state[key] = relocate(moment, move.source)
            if moved.shape == old.shape:
                old.data, old.grad = moved, None
            else:
                self._replace(name, old, nn.Parameter(moved), *optimizers)
        self.positions, self.counts = move.topology.positions, move.topology.counts

    def grown(self, name: str) -> float:
        """Where a parameter of a weight that has just grown begins."""
        return 0.0

    def scales(self) -> Tensor | None:
        """Standard deviations of the active weights `(k,)`, of a guide that learns them."""
        return None

    def collected(self) -> Tensor:
        """What a pair keeps of the active weights `(k,)`, a copy: u."""
        return self.values.detach().clone()

    def lengthwise(self) -> dict[str, Tensor]:
        """All that there is one of for every active weight, `(k,)` each."""
        return {name: parameter.data for name, parameter in self.named_parameters() if parameter.dim()}

    def _replace(self, name: str, old: Tensor, new: nn.Parameter, *optimizers: torch.optim.Optimizer) -> None:
        """A parameter of another length: autograd remembers the shape of the old one for as long as a graph of it lives."""
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
            if old in optimizer.state:
                optimizer.state[new] = optimizer.state.pop(old)
        store = pyro.get_param_store()
        for key in [key for key, parameter in store.named_parameters() if parameter is old]:
            del store[key]
        setattr(self, name, new)

    def _draw(self, count: int) -> Tensor:
        if self.mask == "weight":
            each = self.probs
            if isinstance(each, Tensor) and count > len(each):
                each = each.repeat(count // len(each))
            return draw_keep(count, each, self.values.device, self.generator)
        draws = count // len(self.positions)
        masks = [
            draw_mask(self.positions, self.shapes, self.mask, self.keep_prob, self.generator) for _ in range(draws)
        ]
        return torch.cat(masks)

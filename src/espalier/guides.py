"""The guide q(weights | topology): values at the active positions times a Bernoulli keep. The random mask Z lives here.

Everything the guide holds is of length k, the number of active weights: values, positions, Z, and therefore the
optimiser's moments. The distribution scatters values * Z into the network's flat vector.
"""

from __future__ import annotations

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from espalier.contracts import Move, Topology
from espalier.distributions import MaskedWeights, draw_keep, effective_keep_prob
from espalier.network import BayesianNetwork
from espalier.topology import relocate


class MaskedGuide(PyroModule):
    """CigL's variational family (Lei et al. 2023, eq. 3), collapsed: M at its mode, noise scale -> 0, w = scatter(Z * m).

    It is a Pyro guide for `BayesianNetwork`: site `weights`, trained by `TraceMeanField_ELBO` under any optimiser.

    keep_prob: P(Z = 1); the effective value of the 16-bit draw is kept. One draws nothing.
    rescale: component mean m = u / keep_prob instead of u, so that E[w] = u ("inverted dropout").
    kl_scale: the one tempering knob, a factor on the KL of the weights.
    generator: where Z is drawn from; None is torch's default, which `pyro.set_rng_seed` seeds.

    values: parameter u `(k,)`. positions: buffer `(k,)`. keep: the last Z drawn, `(k,)`.
    """

    positions: Tensor

    def __init__(
        self,
        model: BayesianNetwork,
        topology: Topology,
        keep_prob: float = 1.0,
        *,
        rescale: bool = False,
        kl_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if topology.sizes != model.sizes:
            raise ValueError(f"expected a topology over layers of {model.sizes} weights, got {topology.sizes}")
        if not kl_scale > 0:
            raise ValueError(f"expected a kl_scale above 0, got {kl_scale}")
        self.counts, self.sizes = topology.counts, topology.sizes
        self.keep_prob = effective_keep_prob(keep_prob)
        self.rescale, self.kl_scale, self.generator = rescale, kl_scale, generator
        self.register_buffer("positions", topology.positions.to(model.initial.device, copy=True))
        self.values = nn.Parameter(model.initial[self.positions].clone())
        self.keep: Tensor | None = None
        self.tapped = False
        self._tap: Tensor | None = None

    @property
    def topology(self) -> Topology:
        """The deterministic mask M that the guide stands on."""
        return Topology(self.positions, self.counts, self.sizes)

    @property
    def scale(self) -> float:
        """Component mean over value: m = scale * u."""
        return 1 / self.keep_prob if self.rescale else 1.0

    def distribution(self) -> MaskedWeights:
        """q(weights) at the present values."""
        mean = self.values * self.scale if self.rescale else self.values
        return MaskedWeights(mean, self.positions, sum(self.sizes), self.keep_prob, self._draw)

    def forward(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """The Pyro program: one site, `weights`. The data are not looked at."""
        q = self.distribution()
        with pyro.poutine.scale(scale=self.kl_scale):
            weights: Tensor = pyro.sample("weights", q)
        self.keep = q.keep
        if self.tapped:
            weights.retain_grad()
            self._tap = weights
        return weights

    def gradient(self) -> Tensor:
        """`(num_weights,)`: d(loss)/d(weights) of the last backward pass, after a forward pass with `tapped` set.

        Only the likelihood enters: the KL is a function of the values. The tap is released.
        """
        if self._tap is None or self._tap.grad is None:
            raise RuntimeError(
                "expected a tapped forward and a backward pass first: set guide.tapped = True before them"
            )
        gradient, self._tap, self.tapped = self._tap.grad, None, False
        return gradient

    def move(self, move: Move, *optimizers: torch.optim.Optimizer) -> None:
        """Stand on another topology: values and every optimiser moment travel with their weight, grown ones are 0."""
        for optimizer in optimizers:
            state = optimizer.state.get(self.values, {})
            for name, moment in state.items():
                if isinstance(moment, Tensor) and moment.shape == self.values.shape:
                    state[name] = relocate(moment, move.source)
        self.values.data = relocate(self.values.data, move.source)
        self.values.grad = None
        self.positions, self.counts = move.topology.positions, move.topology.counts

    def _draw(self, count: int) -> Tensor:
        return draw_keep(count, self.keep_prob, self.values.device, self.generator)

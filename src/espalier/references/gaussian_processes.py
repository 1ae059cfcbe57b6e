"""Gaussian processes by GPyTorch as references for the finite network: exact, and a variational deep one.

`exact_gp` and `deep_gp` take `Data` and return what `evaluation.predictions` returns for a regression, draws `(S, n, 2)`
of mean and standard deviation in the data's units, so that `evaluation.score` scores all of them alike. Both fit the
training split only, in float64, without approximate linear algebra, and leave torch's random stream as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from espalier.contracts import Data
from espalier.prediction.evaluation import Predictions, split_of
from espalier.prediction.predict import in_units
from espalier.randomness import seeded
from espalier.references.kernels import DeepArcCosine

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated")  # linear_operator does so when it is imported
    import gpytorch
    from gpytorch.distributions import MultivariateNormal
    from gpytorch.models.deep_gps import DeepGP, DeepGPLayer
    from gpytorch.variational import CholeskyVariationalDistribution, VariationalStrategy

_CHUNK = 1000  # test rows of one forward pass of the deep GP


class Regression(gpytorch.models.ExactGP):
    """y ~ N(f(x), noise), f a GP of mean zero with `kernel`; x `(n, d)`, y `(n,)`."""

    def __init__(self, x: Tensor, y: Tensor, kernel: gpytorch.kernels.Kernel, noise: float) -> None:
        likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.GreaterThan(1e-6))
        super().__init__(x, y, likelihood.to(x))
        self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), kernel.to(x)
        self.likelihood.noise = x.new_tensor(noise)  # a float would become float32

    def forward(self, x: Tensor) -> Any:
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))


def exact_posterior(
    kernel: gpytorch.kernels.Kernel, x: Tensor, y: Tensor, new: Tensor, noise: float
) -> tuple[Tensor, Tensor]:
    """Mean and variance `(m,)` of f at new `(m, d)` given y ~ N(f(x), noise), `(n,)`: without the noise of a new y."""
    model = Regression(x, y, kernel, noise).eval()
    with torch.no_grad(), exactly():
        posterior = model(new)
        return posterior.mean, posterior.variance


def exact_gp(data: Data, split: str = "test", *, depth: int = 2, steps: int = 40) -> Predictions:
    """The infinitely wide `models/deep_gp`: draws `(1, n, 2)` for a split.

    `DeepArcCosine` of `depth` hidden layers; weight variance, bias variance and noise by marginal likelihood, with at most
    `steps` L-BFGS steps from 1/d, 0.1 and 0.1. Time and memory are cubic and quadratic in the training rows.
    """
    x, y = _all(data, "train")
    kernel = DeepArcCosine(depth, weight_variance=1 / x.shape[1], bias_variance=0.1)
    model = Regression(x, y, kernel, 0.1).train()
    evidence = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = -evidence(model(x), y)
        value.backward()
        return value

    with exactly():
        optimizer.step(loss)
        model.eval()
        with torch.no_grad():
            return _in_units(model.likelihood(model(_all(data, split)[0])), data)


class Layer(DeepGPLayer):
    """Outputs `(n, width)` of independent GPs with RBF kernels (one length per input) and a linear mean; width None: one
    GP of constant mean, `(n,)`. inducing: `(m, inputs)`, where they start."""

    def __init__(self, inducing: Tensor, width: int | None) -> None:
        batch = torch.Size([] if width is None else [width])
        inputs = inducing.shape[-1]
        points = inducing.expand(*batch, *inducing.shape).clone()
        distribution = CholeskyVariationalDistribution(len(inducing), batch)
        super().__init__(VariationalStrategy(self, points, distribution), inputs, width)
        self.mean_module = gpytorch.means.ConstantMean() if width is None else gpytorch.means.LinearMean(inputs, batch)
        self.covar_module = gpytorch.kernels.ScaleKernel(
            gpytorch.kernels.RBFKernel(batch_shape=batch, ard_num_dims=inputs), batch_shape=batch
        )

    def forward(self, x: Tensor) -> Any:
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))


class VariationalDeepGP(DeepGP):
    """A deep GP of layers of `hidden` widths and one GP on top, y ~ N(f, noise): doubly stochastic variational inference
    (Salimbeni & Deisenroth 2017). No hidden widths: the sparse variational GP of Hensman et al. 2015.

    inducing: `(m, d)`; layers above the first start with standard normal ones.
    """

    def __init__(self, inducing: Tensor, hidden: Sequence[int], noise: float = 0.1) -> None:
        super().__init__()
        starts = [inducing, *(torch.randn(len(inducing), width).to(inducing) for width in hidden)]
        self.layers = torch.nn.ModuleList(
            Layer(start, width) for start, width in zip(starts, [*hidden, None], strict=True)
        )
        self.likelihood = gpytorch.likelihoods.GaussianLikelihood()
        self.to(inducing)
        self.likelihood.noise = inducing.new_tensor(noise)

    def forward(self, x: Tensor) -> Any:
        """The top layer's marginals given one sample of the layers below for each of `num_likelihood_samples`."""
        for layer in self.layers:
            x = layer(x)
        return x


def elbo_draws(model: VariationalDeepGP, x: Tensor, y: Tensor, num_samples: int, num_data: int | None = None) -> Tensor:
    """Unbiased draws `(num_samples,)` of the ELBO of y `(b,)`, in nats; num_data: what the batch stands for."""
    with gpytorch.settings.num_likelihood_samples(num_samples):
        fit: Tensor = model.likelihood.expected_log_prob(y, model(x)).sum(-1)
    kl: Tensor = model.variational_strategy.kl_divergence()
    return (num_data or len(y)) / len(y) * fit - kl


def deep_gp(
    data: Data,
    split: str = "test",
    *,
    hidden: Sequence[int] = (3,),
    num_inducing: int = 64,
    steps: int = 2000,
    batch_size: int = 256,
    learning_rate: float = 0.05,
    num_samples: int = 32,
    seed: int = 0,
) -> Predictions:
    """A `VariationalDeepGP` fitted by Adam on mini-batches, one sample of the layers per step: draws `(num_samples, n, 2)`.

    The rate falls as a cosine; kernels, noise and inducing points (from `num_inducing` training rows) are learned as well.
    """
    x, y = _all(data, "train")
    with seeded(seed), exactly():
        model = VariationalDeepGP(x[torch.randperm(len(x))[:num_inducing]], hidden).train()
        optimizer = torch.optim.Adam(model.parameters(), learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.randperm(len(x))[:batch_size]
            optimizer.zero_grad()
            (-elbo_draws(model, x[rows], y[rows], 1, len(x)).mean() / len(x)).backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad(), gpytorch.settings.num_likelihood_samples(num_samples):
            parts = [_in_units(model.likelihood(model(part)), data) for part in _all(data, split)[0].split(_CHUNK)]
    return torch.cat([torch.from_numpy(part) for part in parts], 1).numpy()


def _all(data: Data, split: str) -> tuple[Tensor, Tensor]:
    """Inputs `(n, d)`, flattened, and targets `(n,)` of a split. Raises ValueError for class labels."""
    if data.num_classes is not None:
        raise ValueError(f"expected real-valued targets, but {data.name} has {data.num_classes} classes")
    part = split_of(data, split)
    if part.y.dim() > 1:
        raise ValueError(
            f"expected one target per example, got {tuple(part.y.shape)}: fit a GP to each column by itself"
        )
    return part.x[torch.arange(len(part.y))].flatten(1).double(), part.y.double()


def _in_units(outcome: Any, data: Data) -> Predictions:
    """Draws `(S, n, 2)` of the distribution of y, `(n,)` or `(S, n)`."""
    draws = in_units(torch.stack([outcome.mean, outcome.stddev], -1), data.target_shift, data.target_scale)
    found: Predictions = draws.view(-1, *draws.shape[-2:]).numpy()
    return found


def exactly(jitter: float = 1e-6) -> ExitStack:
    """Cholesky whatever the size (GPyTorch takes conjugate gradients and Lanczos for more than 800 rows), and what is
    added to the variances of a variational GP; within a `with`."""
    stack = ExitStack()
    stack.enter_context(gpytorch.settings.fast_computations(False, False, False))
    stack.enter_context(gpytorch.settings.max_cholesky_size(1 << 30))
    stack.enter_context(gpytorch.settings.variational_cholesky_jitter(double_value=jitter))
    return stack

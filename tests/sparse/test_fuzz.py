"""Claims about networks put together at random: an unwritten draw in closed form is the dense one by Pyro, in every number."""

from __future__ import annotations

import copy
import random
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from espalier.guides.gaussian import GaussianGuide
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.sparse import scatter
from espalier.sparse.layout import MIN_ROWS
from espalier.topology.masks import initial
from espalier.training.objective import Terms, by_pyro, closed_form, is_ours, negative_log_likelihood
from unwritten import counted, written_out
from wild import DENSE, MODULES, USES, Block, Wild, wild

EPS = {torch.float64: 1e-10, torch.float32: 1e-5}
GATE, SLOW = range(60), range(60, 1500)

pytestmark = [
    pytest.mark.usefixtures("own_store", "own_stream"),
    pytest.mark.filterwarnings("ignore:.*because requires_grad=False"),  # Pyro, of frozen parameters
]


def guide_of(model: BayesianNetwork, choice: random.Random) -> MaskedGuide:
    stream = torch.Generator().manual_seed(choice.randint(0, 99))
    allocation = choice.choice(["erk", "uniform"])
    topology = initial(model.shapes, choice.choice([0.8, 0.95]), allocation, generator=stream)
    if choice.random() < 0.3:
        return GaussianGuide(model, topology, kl_scale=choice.choice([1.0, 0.3]), generator=stream)
    options = {"rescale": choice.random() < 0.5, "mask": choice.choice(["weight", "unit", "filter"])}
    return MaskedGuide(model, topology, choice.choice([1.0, 0.9]), generator=stream, **options)


def batch_of(choice: random.Random, dtype: torch.dtype) -> tuple[object, Tensor]:
    rows = choice.choice([2, MIN_ROWS - 1, MIN_ROWS, 40])
    x, other = torch.randn(2, rows, 160, dtype=dtype)
    kinds = [x, (x, other), {"x": x, "other": other}, {"other": other, "x": x}]
    y = torch.randn(rows, 3).softmax(-1).to(dtype) if choice.random() < 0.2 else torch.randint(0, 3, (rows,))
    return choice.choice(kinds), y


def gradients(model: BayesianNetwork, guide: MaskedGuide) -> dict[str, Tensor]:
    """Of everything there is; and the buffers."""
    every = [*guide.named_parameters(), *model.named_parameters()]
    found = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in every}
    return {**found, **dict(model.named_buffers())}


def same_fit_written_out(model: BayesianNetwork, guide: MaskedGuide, x: object, y: Tensor, eps: float) -> None:
    """Of one draw, the likelihood has all of its own digits."""
    with torch.no_grad(), torch.random.fork_rng():
        weights = guide.draw()
        torch.manual_seed(5)
        twin = copy.deepcopy(model)
        mine = negative_log_likelihood(twin, twin.evaluate(weights, x), y)
        dense = scatter(weights[guide.positions], guide.positions, model.num_weights)
        torch.manual_seed(5)
        twin = copy.deepcopy(model)
        same(mine, negative_log_likelihood(twin, twin.evaluate(dense, x), y), eps, "fit")


def same(mine: Tensor, theirs: Tensor, eps: float, what: str) -> None:
    assert mine.dtype == theirs.dtype, what
    assert mine.shape == theirs.shape, what
    scale = 1 + float(theirs.detach().double().abs().max()) if theirs.numel() else 1.0
    assert torch.allclose(mine.double(), theirs.double(), rtol=0, atol=eps * scale), what


def compare(seed: int, dense: bool = False) -> tuple[int, list[str]]:
    """Three steps' worth: how many sparse products ran."""
    choice = random.Random(1000 + seed)
    dtype = choice.choice([torch.float64, torch.float64, torch.float32])
    names, model = wild(seed, dense)
    model = model.to(dtype)
    if choice.random() < 0.3:
        model.eval()
    guide = guide_of(model, choice)
    x, y = batch_of(choice, dtype)
    twin = copy.deepcopy(model)
    other = guide_of_twin(guide, twin)
    assert is_ours(model, guide, x, y), names
    same_fit_written_out(copy.deepcopy(model), guide_of_twin(guide, twin), x, y, EPS[dtype])
    with counted() as count:
        mine = [step(closed_form, model, guide, x, y) for _ in range(2)]
    with written_out():
        theirs = [step(by_pyro, twin, other, x, y) for _ in range(2)]
    eps = EPS[dtype]
    for (terms, found), (wanted, known) in zip(mine, theirs, strict=True):
        for name in ("fit", "kl", "l2"):
            term = getattr(terms, name)
            # Pyro's likelihood is its loss less the KL, which may be a hundred times as large: it has the loss's digits.
            digits = float(wanted.loss.detach()) if name == "fit" else 1.0
            same(term, getattr(wanted, name).to(term.dtype), eps * max(1.0, digits), f"{names} {name}")
        assert found.keys() == known.keys()
        for name in found:
            same(found[name], known[name], eps, f"{names} {name}")
    return count(), names


def guide_of_twin(guide: MaskedGuide, model: BayesianNetwork) -> MaskedGuide:
    """A copy that draws the same Z, from a stream of its own."""
    twin = copy.deepcopy(guide)
    twin.generator = torch.Generator()
    twin.generator.set_state(guide.generator.get_state())
    return twin


def step(objective, model: BayesianNetwork, guide: MaskedGuide, x: object, y: Tensor) -> tuple[Terms, dict[str, Tensor]]:
    for parameter in [*model.parameters(), *guide.parameters()]:
        parameter.grad = None
    torch.manual_seed(5)
    terms = objective(model, guide, x, y, nullcontext())
    return terms, {name: tensor.clone() for name, tensor in gradients(model, guide).items()}


@pytest.mark.parametrize("seed", GATE)
def test_a_random_network_has_the_dense_paths_loss_gradient_and_buffers(seed: int) -> None:
    compare(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SLOW)
def test_many_random_networks_have_the_dense_paths_loss_gradient_and_buffers(seed: int) -> None:
    compare(seed, dense=seed % 10 == 0)


@pytest.mark.parametrize("seed", range(6))
def test_a_network_that_needs_ordinary_memory_gets_no_sparse_products(seed: int) -> None:
    compare(seed, dense=True)


def one(name: str) -> tuple[BayesianNetwork, MaskedGuide]:
    torch.manual_seed(0)
    block = MODULES[name]() if name in MODULES else Block({**USES, **DENSE}[name])
    model = BayesianNetwork(Wild([block]), prior_scale=0.5, num_data=90, weight_decay=0.02).double()
    stream = torch.Generator().manual_seed(3)
    topology = initial(model.shapes, 0.9, "uniform", generator=stream)
    return model, MaskedGuide(model, topology, 0.9, generator=stream)


SPARSE = {
    "residual": 2, "twice": 3, "autoencoder": 2, "tied": 3, "shared": 3, "penalty": 2, "sequence": 2, "tokens": 2,
    "layer norm": 1, "batch norm": 1, "matmul": 1, "attention": 1, "transformer": 3, "split heads": 2, "clamped": 1,
    "in place": 2,
}
"""Block -> products over active weights, with the first layer's."""


@pytest.mark.parametrize("name", [*SPARSE, *DENSE])
def test_products_are_sparse_where_they_should_be(name: str) -> None:
    model, guide = one(name)
    x, y = torch.randn(20, 160, dtype=torch.float64), torch.randint(0, 3, (20,))
    closed_form(model, guide, x, y)
    with counted() as count:
        closed_form(model, guide, x, y)
    assert count() == SPARSE.get(name, 0)

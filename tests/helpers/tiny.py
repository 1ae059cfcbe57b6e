"""A network of 90 weights in double precision, its guide with scales, and batches for it."""

import torch
from torch import Tensor, nn

from espalier.guides.gaussian import GaussianGuide
from espalier.network import BayesianNetwork
from espalier.topology.masks import initial

NUM_DATA, BATCH, DECAY, PRIOR = 90, 16, 0.02, 0.8


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))


def case(sparsity: float = 0.5, **options: float) -> tuple[BayesianNetwork, GaussianGuide]:
    """Scales that differ from weight to weight, as training leaves them."""
    model = BayesianNetwork(net(), prior_scale=PRIOR, num_data=NUM_DATA, weight_decay=DECAY)
    stream = torch.Generator().manual_seed(1)
    guide = GaussianGuide(model, initial(model.shapes, sparsity, generator=stream), generator=stream, **options)
    with torch.no_grad():
        guide.log_scale.add_(torch.randn(guide.log_scale.shape, generator=torch.Generator().manual_seed(2)))
    return model, guide


def batch_of(seed: int) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, 6, generator=stream), torch.randint(0, 4, (BATCH,), generator=stream)


def stream(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(count: int = 5) -> Tensor:
    return torch.randn(count, 6, generator=stream(11))

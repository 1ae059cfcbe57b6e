"""A kernel's matrix, in float64."""

import torch

X = torch.tensor([[1.0, 0.5, -0.3], [-0.2, 0.8, 0.6], [0.9, 0.6, -0.2], [-1.0, -0.4, 0.4]])  # near, far and opposite


def dense(kernel, x=X, **options):
    """The kernel matrix, in float64."""
    return kernel.double()(x.double(), **options).to_dense().detach()

"""A user's own model, as a file: a small conv net with batch norm and dropout of its own."""

from torch import nn

from espalier import BayesianNetwork


def model(shape, num_outputs, *, channels: int = 4, dropout: float = 0.2):
    """channels: of the convolution. dropout: of the network itself."""
    net = nn.Sequential(
        nn.Conv2d(shape[0], channels, 3, bias=False), nn.BatchNorm2d(channels), nn.ReLU(), nn.Flatten(),
        nn.Dropout(dropout), nn.Linear(channels * (shape[1] - 2) * (shape[2] - 2), num_outputs),
    )  # fmt: skip
    return BayesianNetwork(net)

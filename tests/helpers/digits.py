"""Handwritten digits, a few, and small networks for them."""

import functools

import torch
from torch import nn

from espalier.contracts import Data
from espalier.data.sets import load
from espalier.network import BayesianNetwork


@functools.cache
def digits() -> Data:
    return load("digits", train_size=320)


def mlp() -> BayesianNetwork:
    torch.manual_seed(0)
    return BayesianNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10)).float())

"""A small network to prune, dense at the start, its guide and batches, in double precision."""

import math

import torch

from espalier.contracts import Evidence, Topology
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.topology.masks import initial
from tiny import DECAY, NUM_DATA, net

SHAPES = [(9, 6), (4, 9)]


def dense(keep_prob: float = 1.0) -> tuple[BayesianNetwork, MaskedGuide]:
    prior_scale = math.sqrt(round(65536 * keep_prob) / 65536 / (NUM_DATA * DECAY))
    model = BayesianNetwork(net(), prior_scale=prior_scale, num_data=NUM_DATA, weight_decay=DECAY)
    stream = torch.Generator().manual_seed(1)
    return model, MaskedGuide(model, initial(model.shapes, 0.0), keep_prob, generator=stream)


def evidence_of(topology: Topology, step: int, seed: int = 0) -> Evidence:
    stream = torch.Generator().manual_seed(1000 * step + seed)
    values = torch.randn(topology.num_active, generator=stream)
    return Evidence(step, values, torch.randn(topology.num_weights, generator=stream), stream)

"""Distributions over the network's weights as one flat vector, and over topologies.

priors.py     the prior N(0, scale^2), and the weight decay that it is; a mixture of slab and spike
masked.py     values times a Bernoulli keep, scattered: what the guide samples, and its KL bound
gaussian.py   a learned standard deviation for every active weight
popup.py      a subnetwork of frozen weights, chosen by scores (tested in ../guides/test_popup.py)
subsets.py    KSubset: P(M) over subsets of fixed size, exact at any size
"""

from __future__ import annotations

from espalier.distributions.gaussian import GaussianWeights as GaussianWeights
from espalier.distributions.masked import MaskedWeights as MaskedWeights
from espalier.distributions.masked import draw_keep as draw_keep
from espalier.distributions.masked import effective_keep_prob as effective_keep_prob
from espalier.distributions.masked import given_keep_prob as given_keep_prob
from espalier.distributions.masked import kl_bound as kl_bound
from espalier.distributions.popup import PopupWeights as PopupWeights
from espalier.distributions.priors import FlatNormal as FlatNormal
from espalier.distributions.priors import MixtureNormal as MixtureNormal
from espalier.distributions.priors import prior_scale_of as prior_scale_of
from espalier.distributions.priors import weight_decay_of as weight_decay_of
from espalier.distributions.subsets import KSubset as KSubset
from espalier.distributions.subsets import log_normaliser as log_normaliser
from espalier.distributions.subsets import overlap_with_mode as overlap_with_mode
from espalier.sparse import scatter as scatter

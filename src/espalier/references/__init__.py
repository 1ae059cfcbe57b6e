"""What sparse Bayesian networks are compared with: exact and variational Gaussian processes, NUTS.

gaussian_processes.py   the exact GP, GPyTorch's variational deep GP, as predictive draws
kernels.py              DeepArcCosine: the infinitely wide network under a mask, for GPyTorch
nuts.py                 Pyro's NUTS on the active weights of a topology
"""

from __future__ import annotations

from espalier.references.gaussian_processes import Regression as Regression
from espalier.references.gaussian_processes import VariationalDeepGP as VariationalDeepGP
from espalier.references.gaussian_processes import deep_gp as deep_gp
from espalier.references.gaussian_processes import elbo_draws as elbo_draws
from espalier.references.gaussian_processes import exact_gp as exact_gp
from espalier.references.gaussian_processes import exact_posterior as exact_posterior
from espalier.references.gaussian_processes import exactly as exactly
from espalier.references.kernels import DeepArcCosine as DeepArcCosine
from espalier.references.kernels import arc_cosine_1 as arc_cosine_1
from espalier.references.kernels import empirical_covariance as empirical_covariance
from espalier.references.nuts import Chains as Chains
from espalier.references.nuts import Convergence as Convergence
from espalier.references.nuts import Potential as Potential
from espalier.references.nuts import program as program

"""What sparse Bayesian networks are compared with: Gaussian processes, NUTS, frequentist intervals.

gaussian_processes.py   the exact GP, GPyTorch's variational deep GP, as predictive draws
kernels.py              DeepArcCosine: the infinitely wide network under a mask, for GPyTorch
nuts.py                 Pyro's NUTS on the active weights of a topology
procedural.py           PNC: a predictor without its initialisation's noise, and two intervals around it, for any inference
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
from espalier.references.procedural import Interval as Interval
from espalier.references.procedural import Procedure as Procedure
from espalier.references.procedural import batching as batching
from espalier.references.procedural import batching_interval as batching_interval
from espalier.references.procedural import cheap_bootstrap as cheap_bootstrap
from espalier.references.procedural import cheap_bootstrap_interval as cheap_bootstrap_interval
from espalier.references.procedural import corrected as corrected
from espalier.references.procedural import untrained as untrained
from espalier.references.procedural import zero as zero

"""Every ArviZ plot that applies to our trees, drawn: of draws, of predictions before and after the data, of leave-one-out."""

from __future__ import annotations

import functools
import importlib.metadata
import io
import warnings
from typing import Any

import pytest

from espalier.contracts import Split
from espalier.prediction import tree_of
from fitted import digits, regression, trained

CLASSES, TARGETS = "classes", "targets"
FEW = "few weights"
"""Of the plots that draw a panel for each."""
PLOTS: dict[str, dict[str, Any]] = {
    "plot_forest": {FEW: 3},
    "plot_dist": {FEW: 2},
    "plot_ridge": {FEW: 3},
    "plot_trace": {FEW: 2},
    "plot_trace_dist": {FEW: 2},
    "plot_rank": {FEW: 2},
    "plot_rank_dist": {FEW: 2},
    "plot_ess": {FEW: 2},
    "plot_ess_evolution": {FEW: 2},
    "plot_mcse": {FEW: 2},
    "plot_autocorr": {FEW: 2},
    "plot_convergence_dist": {FEW: 3},
    "plot_pair": {FEW: 2},
    "plot_parallel": {FEW: 3},
    "plot_prior_posterior": {FEW: 2},
    "plot_ppc_dist": {"kind": "ecdf"},
    "plot_ppc_dist of the prior": {"kind": "ecdf", "group": "prior_predictive"},
    "plot_ppc_pit": {},
    "plot_ppc_dist_pit": {},
    "plot_ppc_interval": {},
    "plot_ppc_tstat": {},
    "plot_ppc_tstat of the prior": {"group": "prior_predictive"},
    "plot_loo_pit": {},
    "plot_loo_interval": {},
}
OF_CLASSES: dict[str, dict[str, Any]] = {
    "plot_ppc_pava": {"data_type": "categorical"},
    "plot_loo_pava": {"data_type": "categorical"},
    "plot_ppc_rootogram": {},
}
NEWER = {"plot_ppc_dist_pit", "plot_loo_interval", "plot_loo_pava"}
"""Which only the packages of Python 3.12 and later have."""
BROKEN = {"plot_rank_dist", "plot_trace_dist"}
"""By arviz-plots 0.8, of Python 3.11, under an xarray of 2026: they make a Dataset from a Dataset."""
OLD = int(importlib.metadata.version("arviz_plots").split(".")[0]) < 1


@pytest.fixture(scope="module")
def arviz() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import arviz.preview as az
        except ImportError:
            import arviz as az
    return az


@functools.cache
def tree(kind: str) -> Any:
    """Two chains of 100 draws."""
    if kind == CLASSES:
        data, fits = digits(), [trained("mlp", 2)[0], trained("mlp", 1)[0]]
        data = data._replace(test=Split(data.test.x[:60], data.test.y[:60]))
    else:
        data, fit = regression()
        fits = [fit, fit]
    layer = fits[0].model.weights[-1].name
    return tree_of(fits, data, ways=["redraw"], num_samples=100, layers=[layer], prior=50)


def drawn(arviz: Any, name: str, of: Any, **options: Any) -> None:
    """By matplotlib, into a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = getattr(arviz, name)(of, backend="matplotlib", **options).viz["figure"].item()
        file = io.BytesIO()
        figure.savefig(file, dpi=40)
    assert len(file.getvalue()) > 1000
    import matplotlib.pyplot

    matplotlib.pyplot.close(figure)


@pytest.mark.parametrize("kind", [CLASSES, TARGETS])
@pytest.mark.parametrize("plot", [*PLOTS, *OF_CLASSES])
def test_arviz_draws_it(arviz: Any, plot: str, kind: str) -> None:
    name, options = plot.split()[0], dict({**PLOTS, **OF_CLASSES}[plot])
    if (OLD and name in NEWER | BROKEN) or (kind == TARGETS and plot in OF_CLASSES):
        pytest.skip("not in these packages, or not of targets")
    of = tree(kind)
    if count := options.pop(FEW, 0):
        some = {"weight": of["posterior"]["weight"].values[:count].tolist()}
        options = {"coords": some} | ({} if name == "plot_forest" else {"var_names": ["value"]})  # a forest is of all variables
    drawn(arviz, name, of, **options)


def test_leave_one_out_compares_and_shows_its_k(arviz: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = arviz.loo(tree(TARGETS), pointwise=True)
        ranked = arviz.compare({"one": tree(TARGETS), "other": tree(TARGETS)})
    drawn(arviz, "plot_khat", found)
    drawn(arviz, "plot_compare", ranked)

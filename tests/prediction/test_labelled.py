"""Claims about labelled results: ArviZ's groups by ArviZ's names, the same in memory and on disk, one draw held at a time."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
from sklearn.datasets import load_digits

from espalier import Training
from espalier.contracts import Split
from espalier.data import from_arrays
from espalier.inference import cigl
from espalier.models import mlp
from espalier.network import BayesianNetwork
from espalier.prediction import save_tree, to_datatree, tree_of
from espalier.prediction.fit import Fit
from fitted import PAIRS, digits, mlp_net, regression, trained

LAYER = "3.weight"


def fit_of(seed: int = 2) -> Fit:
    return trained("mlp", seed)[0]


def test_a_tree_has_arvizs_groups_and_dimensions() -> None:
    fit, data = fit_of(), digits()
    tree = fit.to_datatree(data, layers=[LAYER])
    assert set(tree.children) == {"posterior", "posterior_predictive", "predictions", "log_likelihood", "observed_data",
                                  "constant_data", "sample_stats"}  # fmt: skip
    rows = len(data.test.y)
    assert dict(tree["predictions"]["probability"].sizes) == {"chain": 1, "draw": PAIRS, "observation": rows, "class": 10}
    assert list(tree["predictions"]["class"].values) == [str(label) for label in range(10)]
    assert tree["posterior_predictive"]["y"].dims == tree["log_likelihood"]["y"].dims == ("chain", "draw", "observation")
    np.testing.assert_array_equal(tree["observed_data"]["y"], data.test.y)
    np.testing.assert_array_equal(tree["predictions"]["probability"][0], fit.predict(data.test.x, "pairs"))
    by_hand = to_datatree(fit.mixture(data.test.x, "pairs"), data.test.y)
    np.testing.assert_array_equal(tree["log_likelihood"]["y"], by_hand["log_likelihood"]["y"])


def test_rows_have_their_numbers_in_the_split_and_in_the_source() -> None:
    fit, data = fit_of(), digits()
    constant = fit.to_datatree(data, ways=["ticket"])["constant_data"]
    np.testing.assert_array_equal(constant["row"], np.arange(len(data.test.y)))
    np.testing.assert_array_equal(load_digits().target[constant["source_row"].values], data.test.y)
    assert "source_row" not in fit.to_datatree(data._replace(rows={}), ways=["ticket"])["constant_data"]


def test_posterior_weights_stand_at_their_layer_and_index() -> None:
    fit, data = fit_of(), digits()
    tree = fit.to_datatree(data, layers=[LAYER])
    posterior = tree["posterior"]
    dense = fit[LAYER].flatten(1)
    assert set(posterior["layer"].values) == {LAYER}
    np.testing.assert_array_equal(posterior["value"][0], dense[:, posterior["index"].values])
    np.testing.assert_array_equal(posterior["weight"], fit.topology.positions[fit.topology.counts[0] :])
    np.testing.assert_array_equal(posterior["keep"][0], dense[:, posterior["index"].values] != 0)
    assert tree["constant_data"]["included"].values.all()
    assert posterior.sizes["weight"] == fit.topology.counts[1]


def test_draws_of_a_pair_say_when_they_were_collected() -> None:
    fit = fit_of()
    stats = fit.to_datatree(digits())["sample_stats"]
    rows = fit.history[-PAIRS:]
    for name in ("epoch", "loss", "density"):
        np.testing.assert_array_equal(stats[name][0], [row[name] for row in rows])
    np.testing.assert_allclose(stats["churn"][0], [row["exchanged"] / fit.topology.num_active for row in rows])


def test_the_prior_is_asked_for_and_is_that_of_each_chains_topology() -> None:
    fits, data = [fit_of(), fit_of(1)], digits()
    assert not {"prior", "prior_predictive"} & set(tree_of(fits, data).children)
    tree = tree_of(fits, data, layers=[LAYER], prior=6)
    assert dict(tree["prior_predictive"]["y"].sizes) == {"chain": 2, "draw": 6, "observation": len(data.test.y)}
    assert tree["posterior_predictive"].sizes["draw"] == PAIRS
    values, included = tree["prior"]["value"].values, tree["constant_data"]["included"].values
    assert (values != 0).any(1).tolist() == included.tolist()
    np.testing.assert_array_equal(tree["prior"]["index"], tree["posterior"]["index"])
    assert set(np.unique(tree["prior_predictive"]["y"])) <= set(range(10))
    again = tree_of(fits, data, layers=[LAYER], prior=6)
    xarray.testing.assert_identical(again["prior_predictive"].to_dataset(), tree["prior_predictive"].to_dataset())


def test_a_saved_fit_has_the_prior_it_was_trained_under(tmp_path: Path) -> None:
    """Its model is made anew, and knows neither the scale that a weight decay came to, nor trained biases."""
    fit, data = fit_of(), digits()
    fit.save(tmp_path / "fit")
    anew = BayesianNetwork(mlp_net())
    assert anew.prior_scale is None
    loaded = Fit.load(tmp_path / "fit", anew)
    first, second = (each.to_datatree(data, ways=["ticket"], layers=[LAYER], prior=3) for each in (fit, loaded))
    for group in ("prior", "prior_predictive"):
        xarray.testing.assert_identical(first[group].to_dataset(), second[group].to_dataset())
    save_tree(tmp_path / "a.zarr", loaded, data, ways=["ticket"], layers=[LAYER], prior=3)
    xarray.testing.assert_identical(xarray.open_datatree(tmp_path / "a.zarr", engine="zarr").load(), second)


def test_a_regression_has_moments_in_the_datas_units_and_its_precision() -> None:
    data, fit = regression()
    tree = fit.to_datatree(data)
    np.testing.assert_array_equal(tree["predictions"]["moments"][0], fit.predict(data.test.x, "pairs"))
    np.testing.assert_allclose(tree["observed_data"]["y"], data.in_units(data.test.y))
    variance = tree["predictions"]["moments"].sel(moment="sd")[..., 0] ** 2
    np.testing.assert_allclose(tree["posterior"]["precision"], 1 / variance, rtol=1e-5)


def test_of_several_targets_each_has_its_precision() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    data = from_arrays(x, np.stack([1000 * x[:, 0], 0.01 * x[:, 1]], 1) + rng.normal(size=(200, 2)) * [300, 0.003])
    model = mlp.model((3,), 2, hidden=(8,), likelihood="normal")
    fit = cigl.infer(model, data, sparsity=0.3, drop_rate=0.05, training=Training(epochs=5, batch_size=20, device="cpu"))
    tree = fit.to_datatree(data)
    assert tree["posterior"]["precision"].dims == ("chain", "draw", "output")
    sd = tree["predictions"]["moments"].sel(moment="sd")[:, :, 0]
    np.testing.assert_allclose(tree["posterior"]["precision"], 1 / sd**2, rtol=1e-5)


def test_several_fits_are_chains_and_their_topologies_are_united() -> None:
    fits, data = [fit_of(), fit_of(1)], digits()
    tree = tree_of(fits, data, layers=[LAYER])
    alone = [fit.to_datatree(data) for fit in fits]
    for chain, one in enumerate(alone):
        np.testing.assert_array_equal(tree["predictions"]["probability"][chain], one["predictions"]["probability"][0])
    posterior = tree["posterior"]
    for chain, fit in enumerate(fits):
        dense = fit[LAYER].flatten(1)
        np.testing.assert_array_equal(posterior["value"][chain], dense[:, posterior["index"].values])
        assert int(tree["constant_data"]["included"][chain].sum()) == fit.topology.counts[1]
    assert not tree["constant_data"]["included"].values.all()
    np.testing.assert_array_equal(tree["constant_data"]["index"], posterior["index"])


def test_splits_and_ways_stand_under_their_names() -> None:
    fit, data = fit_of(), digits()
    tree = fit.to_datatree(data, splits=["validation", "test"], ways=["ticket", "redraw"], num_samples=3)
    assert tree["test/redraw/predictions"]["probability"].sizes["draw"] == 3
    assert tree["validation/ticket/predictions"]["probability"].sizes["draw"] == 1
    assert "sample_stats" not in tree["test/redraw"].children
    np.testing.assert_array_equal(
        tree["test/redraw/predictions"]["probability"][0], fit.predict(data.test.x, "redraw", num_samples=3, seed=_first(fit))
    )


def _first(fit: Fit) -> int:
    from espalier.randomness import derived

    return derived(0, 0)


def test_a_store_holds_what_the_tree_holds_and_netcdf_too(tmp_path: Path) -> None:
    fit, data = fit_of(), digits()
    save_tree(tmp_path / "a.zarr", fit, data, layers=[LAYER])
    tree = fit.to_datatree(data, layers=[LAYER])
    stored = xarray.open_datatree(tmp_path / "a.zarr", engine="zarr")
    xarray.testing.assert_identical(stored.load(), tree)
    tree.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    xarray.testing.assert_identical(xarray.open_datatree(tmp_path / "a.nc", engine="h5netcdf").load(), tree)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_store_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    fit, data = fit_of(), digits()
    with pytest.raises(ValueError, match="expected layers of 1.weight, 3.weight, got '9.weight'"):
        save_tree(tmp_path / "a.zarr", fit, data, layers=["9.weight"])
    assert list(tmp_path.iterdir()) == []
    save_tree(tmp_path / "a.zarr", fit, data)
    with pytest.raises(ValueError, match=re.escape("a.zarr exists: choose another name or remove it")):
        save_tree(tmp_path / "a.zarr", fit, data)


def test_writing_holds_one_draw(tmp_path: Path) -> None:
    """Fifty draws of rows that are 3 MB each: a stack of them would be 300."""
    fit, data = fit_of(), digits()
    many = torch.arange(200_000) % len(data.test.y)
    wide = data._replace(test=Split(data.test.x[many], data.test.y[many]))
    tracemalloc.start()
    save_tree(tmp_path / "a.zarr", fit, wide, ways=["redraw"], num_samples=3)
    few = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    save_tree(tmp_path / "b.zarr", fit, wide, ways=["redraw"], num_samples=12)
    more = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert more < 1.2 * few


def test_fits_of_different_numbers_of_draws_are_refused() -> None:
    fit, data = fit_of(), digits()
    other = fit_of(1)
    fewer = Fit(other.model, other.topology, type(other.pairs).of([other.pairs.pair(0)]), keep_prob=other.keep_prob,
                rescale=False, record=other.record, history=other.history)  # fmt: skip
    with pytest.raises(ValueError, match="expected fits of as many draws each"):
        tree_of([fit, fewer], data)
    with pytest.raises(ValueError, match="expected fits, splits and ways to predict, got 0"):
        tree_of([], data)

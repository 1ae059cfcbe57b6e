"""Weights as graphs: paths by matrix powers, spanning trees by Kruskal, the max-min product by enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import ks_2samp

from espalier.topology import graphs


def chain(seed: int = 0, density: float = 0.3, sizes: tuple[int, ...] = (7, 6, 5, 3)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(after, before)) * (rng.random((after, before)) < density)
        for before, after in itertools.pairwise(sizes)
    ]


def kruskal(matrix: np.ndarray) -> list[float]:
    """Union and find over the edges, heaviest first, zeros too."""
    rows, columns = matrix.shape
    group = list(range(rows + columns))

    def find(unit: int) -> int:
        while group[unit] != unit:
            unit = group[unit]
        return unit

    taken = []
    for weight, i, j in sorted(((matrix[i, j], i, j) for i, j in np.ndindex(rows, columns)), reverse=True):
        one, other = find(i), find(rows + j)
        if one != other:
            group[one] = other
            taken.append(float(weight))
    return taken


@pytest.mark.parametrize("seed", range(4))
def test_what_is_connected_is_what_paths_pass(seed: int) -> None:
    layers = chain(seed)
    paths = [
        path for path in itertools.product(*(range(size) for size in (7, 6, 5, 3)))
        if all(layers[k][path[k + 1], path[k]] != 0 for k in range(3))
    ]  # fmt: skip
    found = graphs.connected(layers)
    for place, alive in enumerate([found.inputs, *found.units]):
        assert alive.tolist() == [any(path[place] == unit for path in paths) for unit in range(len(alive))]
    assert found.weights == tuple(len({path[k : k + 2] for path in paths}) for k in range(3))
    assert 0 < sum(found.weights) < sum(int((layer != 0).sum()) for layer in layers)


@pytest.mark.parametrize("density", [1.0, 0.5, 0.15])
def test_the_tree_is_kruskals(density: float) -> None:
    weights = np.abs(chain(3, density, (9, 6))[0])
    weights /= weights.max()
    assert graphs.tree_weights(weights).tolist() == pytest.approx(kruskal(weights), abs=1e-12)


def test_persistence_is_the_norm_of_what_the_tree_lacks() -> None:
    layers = chain(1, 0.8)
    for layer, found in zip(layers, graphs.neural_persistence(layers), strict=True):
        kept = np.array(kruskal(np.abs(layer) / np.abs(layer).max()))
        assert found == pytest.approx(np.sqrt(np.sum((1 - kept) ** 2) / len(kept)), rel=1e-12)
    assert graphs.neural_persistence([np.full((4, 3), -2.0)]) == (0.0,)


def test_the_deep_form_is_of_the_strongest_paths() -> None:
    layers = chain(2, 0.9)
    scaled = [np.abs(layer - layer.mean()) / layer.std() for layer in layers]
    largest = max(layer.max() for layer in scaled)
    strongest = np.zeros((3, 7))
    for path in itertools.product(range(7), range(6), range(5), range(3)):
        weakest = min(scaled[k][path[k + 1], path[k]] for k in range(3)) / largest
        strongest[path[3], path[0]] = max(strongest[path[3], path[0]], weakest)
    kept = np.array(kruskal(strongest))
    assert graphs.deep_graph_persistence(layers) == pytest.approx(np.sqrt(np.mean((1 - kept) ** 2)), rel=1e-12)


def test_a_shifted_batch_is_told_from_its_own_kind() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(4, 6))
    own, same, other = rng.normal(size=(400, 6)), rng.normal(size=(80, 6)), 1.6 * rng.normal(size=(80, 6))
    features = [graphs.activation_features(x, matrix) for x in (own, same, other)]
    naive = [[max(abs(row[i] * matrix[o, i]) for i in range(6)) for o in range(4)] for row in own[:3]]
    assert np.allclose(features[0][:3, :4], naive)
    by_input = [[max(abs(row[i] * matrix[o, i]) for o in range(4)) for i in range(6)] for row in own[:3]]
    assert np.allclose(features[0][:3, 4:], by_input)
    least, told = graphs.shift(features[0], features[1])
    assert least == pytest.approx(min(ks_2samp(features[0][:, k], features[1][:, k]).pvalue for k in range(10)))
    assert not told
    assert graphs.shift(features[0], features[2])[1]


def test_under_the_null_one_batch_in_twenty_is_told_at_most() -> None:
    rng = np.random.default_rng(1)
    told = [graphs.shift(rng.normal(size=(60, 5)), rng.normal(size=(30, 5)))[1] for _ in range(300)]
    assert np.mean(told) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_what_is_no_chain_is_refused() -> None:
    with pytest.raises(ValueError, match="expected matrices"):
        graphs.connected([np.ones((3, 2)), np.ones((2, 4))])
    with pytest.raises(ValueError, match="got a layer of zeros"):
        graphs.neural_persistence([np.zeros((3, 2))])
    with pytest.raises(ValueError, match=r"expected weights in \[0, 1\]"):
        graphs.tree_weights([[1.5]])
    with pytest.raises(ValueError, match="expected two rows or more"):
        graphs.shift(np.ones((3, 2)), np.ones((1, 2)))

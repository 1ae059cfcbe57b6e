"""A network's weights as a graph: what is connected, and how persistent its connections are.

Layers are matrices `(outputs, inputs)` in the order in which data pass them, NumPy float64. Neural persistence is Rieck et al.
2019's, its depth-spanning form Girrbach et al. 2023's. Weights that are out are 0, and edges of weight 0 enter last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.stats import ks_2samp

Floats = NDArray[np.float64]


class Connected(NamedTuple):
    """Of a sparse multilayer network. inputs: those from which a path leads to an output. units: by hidden layer those that lie
    on such a path; the others say nothing, or are heard by nobody. weights: active ones on such a path, by layer."""

    inputs: NDArray[np.bool_]
    units: tuple[NDArray[np.bool_], ...]
    weights: tuple[int, ...]


def _layers(layers: Sequence[ArrayLike]) -> list[Floats]:
    found = [np.asarray(layer, np.float64) for layer in layers]
    fits = all(each.ndim == 2 for each in found) and all(b.shape[1] == a.shape[0] for a, b in zip(found, found[1:], strict=False))
    if not found or not fits:
        raise ValueError(
            f"expected matrices (outputs, inputs), each as wide as the one before is high, got {[each.shape for each in found]}"
        )
    return found


def connected(layers: Sequence[ArrayLike]) -> Connected:
    """What of the weights that are not 0 lies on a path from an input to an output. Raises ValueError for what is no chain."""
    masks = [layer != 0 for layer in _layers(layers)]
    ahead = [np.ones(masks[0].shape[1], bool)]
    for mask in masks:
        ahead.append((mask & ahead[-1]).any(1))
    behind = [np.ones(len(masks[-1]), bool)]
    for mask in reversed(masks):
        behind.insert(0, (mask & behind[0][:, None]).any(0))
    alive = [a & b for a, b in zip(ahead, behind, strict=True)]
    weights = [int((m & alive[i + 1][:, None] & alive[i]).sum()) for i, m in enumerate(masks)]
    return Connected(alive[0], tuple(alive[1:-1]), tuple(weights))


def tree_weights(matrix: ArrayLike) -> Floats:
    """Of a matrix `(r, c)` of weights in [0, 1], as a bipartite graph of r + c units, the `(r + c - 1,)` weights of its maximum
    spanning tree, falling; 0 for each edge that only joins what no weight does."""
    w = np.asarray(matrix, np.float64)
    if w.ndim != 2 or not w.size or not (np.isfinite(w).all() and w.min() >= 0 and w.max() <= 1):
        raise ValueError(f"expected weights in [0, 1] of shape (r, c), got shape {w.shape}, or others")
    rows, columns = w.nonzero()
    units = sum(w.shape)
    graph = coo_array((2 - w[rows, columns], (rows, columns + len(w))), shape=(units, units)).tocsr()
    found = np.sort(2 - minimum_spanning_tree(graph).data)[::-1]
    return np.concatenate([found, np.zeros(units - 1 - len(found))])


def _persistence(matrix: Floats) -> float:
    kept = tree_weights(matrix)
    return float(np.linalg.norm(1 - kept) / np.sqrt(len(kept)))


def neural_persistence(layers: Sequence[ArrayLike]) -> tuple[float, ...]:
    """By layer |1 - t|_2 / sqrt(r + c - 1), t the tree weights of |W| over its maximum: 0 where all weights of the tree are
    equal, 1 at most. A network's is the mean. Of deep layers it is nearly their variance (Girrbach et al. 2023, sec. 3).

    Raises ValueError for a layer without a weight.
    """
    return tuple(_persistence(np.abs(layer) / _largest(layer)) for layer in _layers(layers))


def _largest(layer: Floats) -> float:
    largest = float(np.abs(layer).max())
    if not largest > 0:
        raise ValueError("expected a weight that is not 0 in every layer, got a layer of zeros")
    return largest


def deep_graph_persistence(layers: Sequence[ArrayLike]) -> float:
    """The persistence of the matrix from inputs to outputs whose entries are the strongest paths, a path as strong as its weakest
    weight (max-min product), of |W - mean| / sd by layer over the largest of all (Girrbach et al. 2023, sec. 5)."""
    standardised = [np.abs(layer - layer.mean()) / max(float(layer.std()), np.finfo(float).tiny) for layer in _layers(layers)]
    largest = max(map(_largest, standardised))
    strength = standardised[0] / largest
    for layer in standardised[1:]:
        strength = bottleneck(layer / largest, strength)
    return _persistence(strength)


def bottleneck(later: ArrayLike, earlier: ArrayLike) -> Floats:
    """max over k of min(later[i, k], earlier[k, j]), `(r, c)`."""
    a, b = np.asarray(later, np.float64), np.asarray(earlier, np.float64)
    found = np.zeros((len(a), b.shape[1]))
    for column, row in zip(a.T, b, strict=True):  # of size r c at a time
        np.maximum(found, np.minimum(column[:, None], row), out=found)
    return found


def shift(inside: ArrayLike, batch: ArrayLike, level: float = 0.05) -> tuple[float, bool]:
    """Could the rows of a batch be of the kind of `inside`? The least p-value of two-sided Kolmogorov-Smirnov tests, one for each
    feature, and whether it is below level over their number (Bonferroni).

    inside `(n, D)`, batch `(m, D)`: features of each example, `activation_features` say.
    """
    a, b = np.asarray(inside, np.float64), np.asarray(batch, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"expected two rows or more of the same features in both, got shapes {a.shape} and {b.shape}")
    least = min(float(ks_2samp(own, other).pvalue) for own, other in zip(a.T, b.T, strict=True))
    return least, least < level / a.shape[1]


def activation_features(x: ArrayLike, matrix: ArrayLike) -> Floats:
    """Of each row of x `(n, inputs)` the largest of |x_i W_oi| for every output o, and every input i, `(n, outputs + inputs)`:
    the heaviest edges at each unit of its activation graph, at no tree's price (Girrbach et al. 2023's cheap form)."""
    rows, w = np.asarray(x, np.float64), np.abs(np.asarray(matrix, np.float64))
    by_input = np.abs(rows) * w.max(0)
    by_output = np.stack([(np.abs(row) * w).max(1) for row in rows])
    return np.concatenate([by_output, by_input], 1)

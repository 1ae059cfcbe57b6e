"""Weights that are not written out: a sparse layer is multiplied by its active weights alone, where that is faster.

layout.py      of a topology, every layer's indices as the kernels want them; which layers are worth it
products.py    x W^T of a sparse W, and its gradients
kernels.py     what multiplies for them: stock torch, or kernels.c where it was compiled
tap.py         the gradient of all weights, for whoever wants it, without the weights
unwritten.py   the tensor that stands for scatter(values, positions), and is written out for whoever cannot do without
trial.py       can a network be given such weights? it is tried, with nothing moved
modules.py     a plain network whose Linear layers keep their active weights alone, for prediction
"""

from __future__ import annotations

from espalier.sparse.layout import Layout as Layout
from espalier.sparse.modules import Sparse as Sparse
from espalier.sparse.modules import SparseLinear as SparseLinear
from espalier.sparse.modules import sparsified as sparsified
from espalier.sparse.tap import Tap as Tap
from espalier.sparse.unwritten import Unwritten as Unwritten
from espalier.sparse.unwritten import scatter as scatter

"""What people hand in by mistake is told in one sentence, at every door (contracts.py, nested.py and who stands behind them)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import nn

import espalier
from espalier import BayesianNetwork
from espalier.adapters.estimators import SparseBayesianClassifier
from espalier.certificates.certify import Settings
from espalier.data import from_arrays, from_datasets
from espalier.guides import MaskedGuide
from espalier.inference import cigl, distilled, espn, lottery, mean_field, searched
from espalier.prediction.evaluation import evaluate
from espalier.prediction.grouped import by_groups
from espalier.topology import initial
from espalier.topology.masks import random_topology
from fitted import digits, regression, trained

X, Y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2


def two_inputs() -> Any:
    return from_arrays({"t": X, "u": X}, Y)


def dataset(item: Any) -> Any:
    return from_datasets([(item, 0), (item, 1)], [(item, 0), (item, 1)])


def likely(says: Callable[[torch.Tensor], Any]) -> Any:
    data, _ = regression()
    net = nn.Sequential(nn.Linear(data.shape[0], 1), nn.Flatten(0))
    return cigl.infer(BayesianNetwork(net, likelihood=says), data)


def deployed(tmp_path: Path) -> Any:
    from shelved import made, words

    return espalier.from_pretrained(made("mlp").export(tmp_path / "out", program=words("mlp")))


def begun(net: nn.Module = nn.Linear(3, 2), infer: Any = cigl, whole: bool = False, **options: Any) -> Any:  # noqa: B008
    named = ("batch_size", "mixup", "device", "loss", "patience")
    training = espalier.Training(**{name: options.pop(name) for name in named if name in options})
    data = from_arrays(X, Y, **({"validation": 0.0} if whole else {}))
    return infer.infer(BayesianNetwork(net), data, training=training, **options)


DOORS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "torch's normal": (lambda _: likely(lambda o: torch.distributions.Normal(o, 1.0)),
                       "expected a distribution of pyro.distributions from the likelihood, got a torch.distributions"),
    "a tensor": (lambda _: likely(lambda o: o), "expected a distribution of pyro.distributions from the likelihood, got a torch"),
    "a dict an example": (lambda _: dataset({"a": torch.zeros(3)}), "expected one input an example, got a dict of 1 in row 0"),
    "a tuple an example": (lambda _: dataset((torch.zeros(3), torch.ones(2))), "expected one input an example, got a tuple of 2"),
    "an input less": (lambda _: two_inputs().inputs({"t": X}), "expected inputs by the names t, u, got t"),
    "an input more": (lambda _: two_inputs().inputs({"t": X, "u": X, "v": X}), "expected inputs by the names t, u, got t, u, v"),
    "sparse rows": (lambda _: from_arrays(csr_matrix(X), Y), r"expected a dense array of inputs, got a sparse matrix"),
    "numpy to a folder": (lambda path: deployed(path)(np.zeros((2, 1, 6, 5))), "expected a tensor of rows, got a ndarray"),
    "a frame": (lambda _: trained("mlp")[0].predict(pd.DataFrame(X)), r"expected inputs as the network takes them, got a pand"),
    "no seed": (lambda _: begun(seed=-1), "expected a seed of 0 or more, a whole number, got -1"),
    "a seed in words": (lambda _: begun(seed="1"), "expected a seed of 0 or more, a whole number, got '1'"),
    "half a particle": (lambda _: begun(num_particles=1.5), "expected num_particles as a whole number, got 1.5"),
    "one row for batch norm": (lambda _: begun(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), batch_size=1),
                               "expected batches of two examples or more for batch norm, got one"),
    "a batch in words": (lambda _: begun(batch_size="8"), "expected batch_size as a whole number, got '8'"),
    "more than all": (lambda _: begun(infer=lottery, sparsity=1.5), r"and a sparsity in \[0, 1\), got 3, 0, 1.5"),
    "a list of rates": (lambda _: MaskedGuide(network := BayesianNetwork(nn.Linear(3, 2)), initial(network.shapes, 0.5), [0.8]),
                        r"expected a keep_prob in \(0, 1\], or a tuple of one for each layer, got \[0.8\]"),
    "no such device": (lambda _: begun(device="mps"), "expected a device such as auto, cpu or cuda, got 'mps'"),
    "a rate of one": (lambda _: cigl.infer(BayesianNetwork(nn.Linear(3, 2)), from_arrays(X, Y), drop_rate=1.0),
                      r"expected a drop_rate in \[0, 1\), P\(Z = 0\) of an active weight, got 1.0"),
    "a row of NaN": (lambda _: trained("mlp")[0].predict(digits().test.x.index_fill(0, torch.tensor([3]), torch.nan)),
                     r"expected finite inputs, as in training, got NaN or infinity in row 3 \(counted from 0\)"),
    "a list": (lambda _: trained("mlp")[0].predict([1.0, 2.0]), "expected tensors or arrays of rows, got a float among them"),
    "a plain network": (lambda _: cigl.infer(nn.Linear(3, 2), from_arrays(X, Y)),  # type: ignore[arg-type]
                        r"expected a BayesianNetwork, got Linear: wrap it, BayesianNetwork\(net\)"),
    "a plain network, in rounds": (lambda _: lottery.infer(nn.Linear(3, 2), from_arrays(X, Y)),  # type: ignore[arg-type]
                                   "expected a BayesianNetwork, got Linear"),
    "plain tuples": (lambda _: cigl.infer(BayesianNetwork(nn.Linear(3, 2)), (X, Y)),  # type: ignore[arg-type]
                     "expected Data, got tuple: load_data"),
    "options in a dict": (lambda _: cigl.infer(BayesianNetwork(nn.Linear(3, 2)), from_arrays(X, Y), training={"epochs": 3}),  # type: ignore[arg-type]
                          r"expected a Training, got dict: Training\(epochs=30"),
    "a class of watches": (lambda _: begun(watch=espalier.training.Watch), "expected a Watch, several in a list, .*, got Watch"),
    "a watch that prints": (lambda _: begun(watch=print), "expected a Watch, .* got builtin_function_or_method"),
    "a folder of checkpoints": (lambda path: espalier.training.Checkpoints(path), "expected a file for the checkpoint, but .*"),
    "never a number": (lambda _: begun(delta_t=float("nan")), "expected delta_t of at least 1 step, got nan"),
    "a threshold that is none": (lambda _: begun(infer=mean_field, accept="bayes-factor", log_threshold=float("nan")),
                                 "expected a log_threshold in nats, got nan"),
    "an endless deviation": (lambda _: begun(infer=mean_field, noise_scale=float("inf")), "expected a finite noise_scale"),
    "more than a layer": (lambda _: random_topology([(3, 4)], [20]), r"expected counts of 0 to \[12\] active .* got \[20\]"),
    "a torch loss": (lambda _: begun(loss=nn.CrossEntropyLoss(reduction="none")),
                     r"expected a loss of \(logits \(m, C\), labels \(m,\), progress\) .*, but CrossEntropyLoss fails on 2 rows"),
    "no loss": (lambda _: begun(loss=None), "expected a loss of likelihood, .*, got None"),
    "a program's name alone": (lambda path: trained("mlp")[0].export(path / "out", digits(), program="mlp"),
                               r"expected a program of .*, as \{'model': NAME\}, got 'mlp'"),
    "one risk": (lambda _: Settings(risks="error", alphas=0.2).promises(),  # type: ignore[arg-type]
                 r"expected risks, alphas and abstain in tuples, .* say, got 'error', 0.2 and \(\)"),
    "an option twice": (lambda _: SparseBayesianClassifier(options={"sparsity": 0.5}).fit(X, Y),
                        "expected options without a parameter of the estimator's own, got 'sparsity': say it by that"),
    "no fraction": (lambda _: begun(infer=distilled, average_from=float("nan"), drop_rate=0.1), "expected average_from in"),
    "half an epoch": (lambda _: begun(infer=distilled, distill_epochs=1.2, drop_rate=0.1), "expected distill_epochs as a whole"),
    "half a row": (lambda _: begun(infer=searched, search_rows=1.5), "expected whole rows and steps of at least 1"),
    "patience without rows, later": (lambda _: begun(infer=espn, form="rewind", patience=2, whole=True), "validation split"),
    "groups alone": (lambda _: by_groups({}, regression()[0], np.zeros(3)),  # type: ignore[arg-type]
                     "expected groups by the name of their column, .* got a ndarray"),
    "the wrong way round": (lambda _: evaluate(regression()[0], trained("mlp")[0]),  # type: ignore[arg-type]
                            "expected Data, got a Fit: a fit comes first"),
}  # fmt: skip


def test_one_input_may_be_a_list_of_scalars() -> None:
    for row in (list(X[0]), tuple(torch.tensor(value) for value in X[0]), list(map(float, X[0]))):
        assert dataset(row).shape == (3,)


@pytest.mark.parametrize("door", DOORS)
def test_it_is_one_sentence(door: str, tmp_path: Path) -> None:
    call, said = DOORS[door]
    with pytest.raises(ValueError, match=said) as error:
        call(tmp_path)
    assert "\n" not in str(error.value)

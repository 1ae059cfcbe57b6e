"""Espalier: Bayesian sparse training for networks that know what they don't know.

From the bottom to the top, each using only what stands below it:

nested.py      tensors in tuples and dicts
randomness.py  seeds, streams by purpose, torch's default streams
calibration    scores with intervals; no torch        contracts.py, store.py, shelf.py   words, files, programs by name
topology       the mask M and its schedules           data, pictures                     sets; plots as data
sparse         weights that are not written out       pages                              what people read, as HTML
followers.py   where a method hooks into the loop     distributions  priors, masked weights, subsets
maskable.py    which tensors are masked               compiled.py    a network's call by torch.compile
likelihoods.py from an output to the distribution of y losses.py      from an output to another loss
bounds.py      what units can be while an input moves network.py    the model
guides         q(weights | topology): Z is drawn      models                             the shelf of networks
prediction     Fit, ways to predict, scores, costs
training       the loop and its options               references                         GPs, NUTS, PNC to compare with
inference      the shelf of methods                   runs                               recipes and run folders
grids          methods x sparsities x seeds           certificates                       pruning that is certified
theory         every claim, checked                   reports                            a run in one page
deployment     a network where its users work: folders, hubs, ONNX
adapters       scikit-learn, Optuna, TensorBoard, Lightning, a torch loop of one's own
cli            `espalier ...`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from espalier.lazy import lazily

if TYPE_CHECKING:
    from espalier.contracts import Data as Data
    from espalier.contracts import Split as Split
    from espalier.contracts import Topology as Topology
    from espalier.data.sets import load as _load_data
    from espalier.deployment.export import export as export
    from espalier.deployment.hub import push_to_hub as push_to_hub
    from espalier.deployment.pretrained import from_pretrained as from_pretrained
    from espalier.guides.masked import MaskedGuide as MaskedGuide
    from espalier.network import BayesianNetwork as BayesianNetwork
    from espalier.prediction.fit import Fit as Fit
    from espalier.runs.folder import load as load
    from espalier.shelf import load as _load_program
    from espalier.training.options import Training as Training
    from espalier.training.train import train as train

    load_data, load_program = _load_data, _load_program  # another name is handed on by an assignment alone

__version__ = "0.1.0"

__getattr__, __dir__ = lazily(
    __name__,
    {
        "contracts": "Data Split Topology",
        "data": "load:load_data",
        "deployment.export": "export",
        "deployment.hub": "push_to_hub",
        "deployment.pretrained": "from_pretrained",
        "guides": "MaskedGuide",
        "network": "BayesianNetwork",
        "prediction": "Fit",
        "runs": "load",
        "shelf": "load:load_program",
        "training": "Training",
        "training.train": "train",
    },
)

__all__ = sorted(__dir__())  # noqa: PLE0605 - of names that are loaded when asked for

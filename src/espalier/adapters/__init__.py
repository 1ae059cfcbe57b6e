"""At home where its users work: other people's loggers, tuners, estimators and loops. Each needs its own library, and loads it
when it is used.

listeners.py   watches that hand the history on: TensorBoard, CSV, whatever has a `log_metrics`
tuning.py      Optuna prunes a training
estimators.py  scikit-learn's estimators
attached.py    sparse training in a torch loop of your own
lightning.py   the same as a callback of Lightning
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from espalier.lazy import lazily

if TYPE_CHECKING:
    from espalier.adapters.attached import Attached as Attached
    from espalier.adapters.attached import attach as attach
    from espalier.adapters.estimators import SparseBayesianClassifier as SparseBayesianClassifier
    from espalier.adapters.estimators import SparseBayesianRegressor as SparseBayesianRegressor
    from espalier.adapters.lightning import SparseTraining as SparseTraining
    from espalier.adapters.listeners import Csv as Csv
    from espalier.adapters.listeners import Metrics as Metrics
    from espalier.adapters.listeners import TensorBoard as TensorBoard
    from espalier.adapters.listeners import log_to as log_to
    from espalier.adapters.tuning import Pruner as Pruner

__getattr__, __dir__ = lazily(
    __name__,
    {
        "attached": "Attached attach",
        "estimators": "SparseBayesianClassifier SparseBayesianRegressor",
        "lightning": "SparseTraining",
        "listeners": "Csv Metrics TensorBoard log_to",
        "tuning": "Pruner",
    },
)

"""Espalier: Bayesian sparse training for networks that know what they don't know."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from espalier import calibration as calibration
    from espalier.contracts import Data as Data
    from espalier.contracts import Split as Split
    from espalier.contracts import Topology as Topology
    from espalier.data import load as load_data
    from espalier.fit import Fit as Fit
    from espalier.guides import MaskedGuide as MaskedGuide
    from espalier.network import BayesianNetwork as BayesianNetwork
    from espalier.options import Training as Training
    from espalier.runs import load as load
    from espalier.shelf import load as load_program
    from espalier.training import train as train

__version__ = "0.1.0"

# Public name -> (module, name). Loaded when first asked for: torch takes longer to import than `espalier --help` may.
_PUBLIC = {
    "BayesianNetwork": ("network", "BayesianNetwork"),
    "Data": ("contracts", "Data"),
    "Fit": ("fit", "Fit"),
    "MaskedGuide": ("guides", "MaskedGuide"),
    "Split": ("contracts", "Split"),
    "Topology": ("contracts", "Topology"),
    "Training": ("options", "Training"),
    "load": ("runs", "load"),
    "load_data": ("data", "load"),
    "load_program": ("shelf", "load"),
    "train": ("training", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'espalier' has no attribute {name!r}; it has {', '.join(_PUBLIC)}")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(f"espalier.{module}"), attribute)


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]

"""Pictures as data, and what draws them.

data.py    Curve, Picture, Ranks, Replicated: what is to be drawn
plots.py   the only place that imports matplotlib
"""

from __future__ import annotations

from espalier.pictures.data import Curve as Curve
from espalier.pictures.data import Picture as Picture
from espalier.pictures.data import Ranks as Ranks
from espalier.pictures.data import Replicated as Replicated
from espalier.pictures.plots import curves as curves
from espalier.pictures.plots import ranks as ranks
from espalier.pictures.plots import reliability as reliability
from espalier.pictures.plots import replicated as replicated
from espalier.pictures.plots import save as save

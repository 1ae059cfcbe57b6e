"""Guides q(weights | topology): Pyro programs of one flat site. The random mask Z is drawn here.

masked.py      MaskedGuide, CigL's family, collapsed: values times a Bernoulli keep
learned.py     LearnedGuide: a keep probability that a plain Pyro program learns
gaussian.py    GaussianGuide: a mean and a standard deviation for every active weight
popup.py       PopupGuide: frozen weights, of which scores choose a few
relaxed.py     RelaxedGuide: a real number for every weight's mask, under a Laplace prior
hierarchy.py   HierarchicalGuide: eq. 3 as four sites U, M, Z, W; a distribution over topologies
"""

from __future__ import annotations

from espalier.guides.gaussian import GaussianGuide as GaussianGuide
from espalier.guides.hierarchy import HierarchicalGuide as HierarchicalGuide
from espalier.guides.hierarchy import LayerSubsets as LayerSubsets
from espalier.guides.hierarchy import LeaveOneOutELBO as LeaveOneOutELBO
from espalier.guides.hierarchy import reversed_model as reversed_model
from espalier.guides.learned import CoupledELBO as CoupledELBO
from espalier.guides.learned import LearnedGuide as LearnedGuide
from espalier.guides.masked import Mask as Mask
from espalier.guides.masked import MaskedGuide as MaskedGuide
from espalier.guides.masked import draw_mask as draw_mask
from espalier.guides.popup import PopupGuide as PopupGuide
from espalier.guides.relaxed import RelaxedGuide as RelaxedGuide

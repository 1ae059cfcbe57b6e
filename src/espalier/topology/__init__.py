"""The deterministic mask M and how it moves: pure functions on sorted positions.

masks.py       allocation (ERK, uniform), initial topologies, drop and grow, bits
codes.py       a topology as few bytes: its gaps
schedules.py   when it moves and on what evidence: RigL, SET, static, gradual, one-shot
scores.py      which active weights go first: magnitude, signal to noise, Bayes factor
evidence.py    Bayes factors of leaving a weight out, Bayesian model reduction, and their curve
graphs.py      weights as a graph: paths from inputs to outputs, neural and deep graph persistence
options.py     the options of a topology that programs share (tested in ../runs/test_recipes.py)
"""

from __future__ import annotations

from espalier.topology.masks import ALLOCATIONS as ALLOCATIONS
from espalier.topology.masks import drop_and_grow as drop_and_grow
from espalier.topology.masks import erk as erk
from espalier.topology.masks import global_topology as global_topology
from espalier.topology.masks import initial as initial
from espalier.topology.masks import keep_top as keep_top
from espalier.topology.masks import magnitude_topology as magnitude_topology
from espalier.topology.masks import prune as prune
from espalier.topology.masks import random_topology as random_topology
from espalier.topology.masks import uniform as uniform
from espalier.topology.schedules import RULES as RULES
from espalier.topology.schedules import drop_and_grow_every as drop_and_grow_every
from espalier.topology.schedules import gradual as gradual
from espalier.topology.schedules import one_shot as one_shot
from espalier.topology.schedules import rigl as rigl
from espalier.topology.schedules import rule as rule
from espalier.topology.schedules import set_ as set_
from espalier.topology.schedules import static as static
from espalier.topology.scores import DROP_SCORES as DROP_SCORES

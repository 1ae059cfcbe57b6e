"""From a fit to predictive distributions and their scores.

fit.py          Fit: collected pairs (Z, u), topology and record; seven ways to predict
recognised.py   is it read with the network that it is of?
pairs.py        the collected pairs (tested in test_fit.py)
predictor.py    what can be asked of a fit, and of an ensemble (tested in test_fit.py)
ensemble.py     several fits that predict together
predict.py      one forward pass of all rows, in batches, at one weight vector
batchnorm.py    statistics re-estimated for a weight vector
evaluation.py   every way to predict, every score, with intervals
grouped.py      scores by group, and whether groups differ
mixture.py      the posterior predictive of any likelihood: a mixture of its own distributions
criticism.py    posterior and prior predictive checks: statistics of the data beside those of replicated data
prior.py        weights from the prior, on a topology or dense, and what they say
datatree.py     a mixture at rows of your own as labelled arrays, for ArviZ
labelled.py     fits on a data set as labelled arrays: in memory, or a Zarr store written draw by draw
plain_pyro.py   results of plain Pyro as an ArviZ DataTree
loo.py          leave-one-out from one fit, where its draws are of a posterior; comparison; LOO-PIT
recalibration.py  what a fit predicts after calibrators that were fitted on the validation split
uncertainty.py  how uncertain of every row, by scores of the draws
one_pass.py     what one network's logits say of its own ignorance
moments.py      numbers by their means and variances, and torch's functions of them
attention.py    of softmax and attention
propagation.py  what all masks say together, by one pass of moments
features.py     what a layer is given, and the doubt of a single network by it
robustness.py   accuracy when inputs may move by eps: certified, under attack, under noise
costs.py        FLOPs of training and prediction, bytes of state and file
"""

from __future__ import annotations

from espalier.network import evaluating as evaluating
from espalier.prediction.criticism import CLASSES as CLASSES
from espalier.prediction.criticism import TARGETS as TARGETS
from espalier.prediction.criticism import Check as Check
from espalier.prediction.criticism import check_pictures as check_pictures
from espalier.prediction.criticism import posterior_check as posterior_check
from espalier.prediction.criticism import predictive_check as predictive_check
from espalier.prediction.criticism import prior_check as prior_check
from espalier.prediction.datatree import to_datatree as to_datatree
from espalier.prediction.ensemble import Ensemble as Ensemble
from espalier.prediction.evaluation import SPLITS as SPLITS
from espalier.prediction.evaluation import evaluate as evaluate
from espalier.prediction.evaluation import predictions as predictions
from espalier.prediction.evaluation import score as score
from espalier.prediction.evaluation import split_of as split_of
from espalier.prediction.features import OnePass as OnePass
from espalier.prediction.features import features_of as features_of
from espalier.prediction.fit import WAYS as WAYS
from espalier.prediction.fit import Fit as Fit
from espalier.prediction.fit import How as How
from espalier.prediction.grouped import by_groups as by_groups
from espalier.prediction.labelled import save_tree as save_tree
from espalier.prediction.labelled import tree_of as tree_of
from espalier.prediction.loo import Loo as Loo
from espalier.prediction.loo import Ranked as Ranked
from espalier.prediction.loo import compare_loo as compare_loo
from espalier.prediction.loo import leave_one_out as leave_one_out
from espalier.prediction.loo import loo_pit as loo_pit
from espalier.prediction.loo import psis_loo as psis_loo
from espalier.prediction.mixture import Mixture as Mixture
from espalier.prediction.one_pass import energy as energy
from espalier.prediction.one_pass import information as information
from espalier.prediction.pairs import Pair as Pair
from espalier.prediction.pairs import Pairs as Pairs
from espalier.prediction.plain_pyro import from_pyro as from_pyro
from espalier.prediction.predict import parameters_of as parameters_of
from espalier.prediction.predict import predictive as predictive
from espalier.prediction.predictor import Predictor as Predictor
from espalier.prediction.prior import prior_outcomes as prior_outcomes
from espalier.prediction.prior import prior_weights as prior_weights
from espalier.prediction.propagation import equip as equip
from espalier.prediction.recalibration import recalibrated as recalibrated
from espalier.prediction.robustness import fast_gradient as fast_gradient
from espalier.prediction.robustness import looked_at as looked_at
from espalier.prediction.robustness import robustness_of as robustness_of
from espalier.prediction.robustness import unbroken as unbroken
from espalier.prediction.uncertainty import uncertainties as uncertainties

"""Scores of predictive distributions, with intervals that cover. NumPy and SciPy; no torch.

scores.py        accuracy, NLL, Brier, ECE, CRPS and their kin; floors, intervals, reliability
summaries.py     intervals for means, and what a record keeps
smooth.py        calibration error without bins, its interval and its curve
kernel.py        is the whole distribution calibrated? The kernel error with an exact test, Spiegelhalter's z
groups.py        scores by group, the largest gap, do groups differ?, reliability by class
clusters.py      the same where an example has several labels
uncertainty.py   which uncertainty? Total, aleatoric, epistemic and others, by name, from draws
features.py      the doubt of a single network, from its features: neighbours, densities, Laplace
truth.py         the divergence from a truth that is known
selective.py     risk and coverage where the least certain are handed on
detection.py     in or out of distribution: AUROC and its kin
resampling.py    the bootstrap of what is no mean
proportions.py   exact intervals of a share
comparison.py    two methods on the same examples and seeds: paired differences and their intervals
calibrators.py   by name: how each is fitted on validation and applied to what is predicted
temperature.py   one number, of an average or of each draw (tested in test_calibrators.py)
linear.py        vector and matrix scaling, Dirichlet calibration
monotone.py      isotonic and beta: maps of one probability
spread.py        one factor of a regression's variances
"""

from __future__ import annotations

from espalier.calibration.calibrators import CALIBRATORS as CALIBRATORS
from espalier.calibration.calibrators import DRAW_CALIBRATORS as DRAW_CALIBRATORS
from espalier.calibration.calibrators import REGRESSION_CALIBRATORS as REGRESSION_CALIBRATORS
from espalier.calibration.calibrators import Calibrator as Calibrator
from espalier.calibration.calibrators import apply_temperature as apply_temperature
from espalier.calibration.calibrators import fit_temperature as fit_temperature
from espalier.calibration.clusters import clustered_summary as clustered_summary
from espalier.calibration.comparison import Difference as Difference
from espalier.calibration.comparison import RegressionScores as RegressionScores
from espalier.calibration.comparison import Scores as Scores
from espalier.calibration.comparison import Summary as Summary
from espalier.calibration.comparison import between as between
from espalier.calibration.comparison import crossed_interval as crossed_interval
from espalier.calibration.comparison import differences as differences
from espalier.calibration.comparison import ece_debiased as ece_debiased
from espalier.calibration.comparison import t_interval as t_interval
from espalier.calibration.detection import aupr_in as aupr_in
from espalier.calibration.detection import aupr_out as aupr_out
from espalier.calibration.detection import auroc as auroc
from espalier.calibration.detection import auroc_interval as auroc_interval
from espalier.calibration.detection import detection_differences as detection_differences
from espalier.calibration.detection import detection_summary as detection_summary
from espalier.calibration.detection import false_positive_rate as false_positive_rate
from espalier.calibration.features import DensityScore as DensityScore
from espalier.calibration.features import LaplaceScore as LaplaceScore
from espalier.calibration.features import NeighbourRegression as NeighbourRegression
from espalier.calibration.features import NeighbourScore as NeighbourScore
from espalier.calibration.groups import Gap as Gap
from espalier.calibration.groups import by_group as by_group
from espalier.calibration.groups import calibration_differs as calibration_differs
from espalier.calibration.groups import class_reliability as class_reliability
from espalier.calibration.groups import groups_differ as groups_differ
from espalier.calibration.groups import largest_gap as largest_gap
from espalier.calibration.groups import means_by_group as means_by_group
from espalier.calibration.kernel import Evidence as Evidence
from espalier.calibration.kernel import skce as skce
from espalier.calibration.kernel import skce_test as skce_test
from espalier.calibration.kernel import spiegelhalter as spiegelhalter
from espalier.calibration.linear import apply_dirichlet as apply_dirichlet
from espalier.calibration.linear import apply_matrix as apply_matrix
from espalier.calibration.linear import apply_vector as apply_vector
from espalier.calibration.linear import fit_dirichlet as fit_dirichlet
from espalier.calibration.linear import fit_matrix as fit_matrix
from espalier.calibration.linear import fit_vector as fit_vector
from espalier.calibration.monotone import apply_beta as apply_beta
from espalier.calibration.monotone import apply_isotonic as apply_isotonic
from espalier.calibration.monotone import fit_beta as fit_beta
from espalier.calibration.monotone import fit_isotonic as fit_isotonic
from espalier.calibration.proportions import clopper_pearson as clopper_pearson
from espalier.calibration.resampling import Estimate as Estimate
from espalier.calibration.scores import LEVEL as LEVEL
from espalier.calibration.scores import NUM_BINS as NUM_BINS
from espalier.calibration.scores import NUM_RESAMPLES as NUM_RESAMPLES
from espalier.calibration.scores import SEED as SEED
from espalier.calibration.scores import Reliability as Reliability
from espalier.calibration.scores import accuracy as accuracy
from espalier.calibration.scores import accuracy_scores as accuracy_scores
from espalier.calibration.scores import adaptive_ece as adaptive_ece
from espalier.calibration.scores import adaptive_ece_interval as adaptive_ece_interval
from espalier.calibration.scores import bin_gaps as bin_gaps
from espalier.calibration.scores import brier as brier
from espalier.calibration.scores import brier_scores as brier_scores
from espalier.calibration.scores import classwise_ece as classwise_ece
from espalier.calibration.scores import classwise_ece_interval as classwise_ece_interval
from espalier.calibration.scores import coverage_scores as coverage_scores
from espalier.calibration.scores import crps as crps
from espalier.calibration.scores import crps_scores as crps_scores
from espalier.calibration.scores import ece as ece
from espalier.calibration.scores import ece_floor as ece_floor
from espalier.calibration.scores import ece_interval as ece_interval
from espalier.calibration.scores import gaussian_nll as gaussian_nll
from espalier.calibration.scores import gaussian_nll_scores as gaussian_nll_scores
from espalier.calibration.scores import interval_coverage as interval_coverage
from espalier.calibration.scores import nll as nll
from espalier.calibration.scores import nll_scores as nll_scores
from espalier.calibration.scores import reliability as reliability
from espalier.calibration.scores import rmse as rmse
from espalier.calibration.scores import squared_errors as squared_errors
from espalier.calibration.selective import RiskCoverage as RiskCoverage
from espalier.calibration.selective import augrc as augrc
from espalier.calibration.selective import aurc as aurc
from espalier.calibration.selective import coverage_at_risk as coverage_at_risk
from espalier.calibration.selective import excess_aurc as excess_aurc
from espalier.calibration.selective import risk_at_coverage as risk_at_coverage
from espalier.calibration.selective import risk_coverage as risk_coverage
from espalier.calibration.selective import selective_differences as selective_differences
from espalier.calibration.selective import selective_summary as selective_summary
from espalier.calibration.smooth import SmoothReliability as SmoothReliability
from espalier.calibration.smooth import smooth_ece as smooth_ece
from espalier.calibration.smooth import smooth_ece_interval as smooth_ece_interval
from espalier.calibration.smooth import smooth_error as smooth_error
from espalier.calibration.smooth import smooth_error_interval as smooth_error_interval
from espalier.calibration.smooth import smooth_reliability as smooth_reliability
from espalier.calibration.spread import apply_variance as apply_variance
from espalier.calibration.spread import fit_variance as fit_variance
from espalier.calibration.summaries import bootstrap_interval as bootstrap_interval
from espalier.calibration.summaries import classification_summary as classification_summary
from espalier.calibration.summaries import loss_intervals as loss_intervals
from espalier.calibration.summaries import regression_summary as regression_summary
from espalier.calibration.summaries import summary_of as summary_of
from espalier.calibration.temperature import apply_draws_temperature as apply_draws_temperature
from espalier.calibration.temperature import fit_draws_temperature as fit_draws_temperature
from espalier.calibration.temperature import fit_dropped_temperature as fit_dropped_temperature
from espalier.calibration.truth import divergence as divergence
from espalier.calibration.truth import divergence_scores as divergence_scores
from espalier.calibration.uncertainty import REGRESSION_UNCERTAINTIES as REGRESSION_UNCERTAINTIES
from espalier.calibration.uncertainty import UNCERTAINTIES as UNCERTAINTIES
from espalier.calibration.uncertainty import aleatoric_variance as aleatoric_variance
from espalier.calibration.uncertainty import epistemic_variance as epistemic_variance
from espalier.calibration.uncertainty import expected_entropy as expected_entropy
from espalier.calibration.uncertainty import margin as margin
from espalier.calibration.uncertainty import max_probability as max_probability
from espalier.calibration.uncertainty import mutual_information as mutual_information
from espalier.calibration.uncertainty import predictive_entropy as predictive_entropy
from espalier.calibration.uncertainty import total_variance as total_variance
from espalier.calibration.uncertainty import variation_ratio as variation_ratio

"""Scores of predictive distributions, with intervals that cover. NumPy and SciPy; no torch.

scores.py        accuracy, NLL, Brier, ECE, CRPS and their kin; floors, intervals, reliability
clusters.py      the same where an example has several labels
calibrators.py   temperature: fitted on validation, applied to what is predicted
comparison.py    two methods on the same examples and seeds: paired differences and their intervals
"""

from __future__ import annotations

from espalier.calibration.calibrators import CALIBRATORS as CALIBRATORS
from espalier.calibration.calibrators import Calibrator as Calibrator
from espalier.calibration.calibrators import apply_temperature as apply_temperature
from espalier.calibration.calibrators import fit_temperature as fit_temperature
from espalier.calibration.clusters import clustered_summary as clustered_summary
from espalier.calibration.comparison import Difference as Difference
from espalier.calibration.comparison import Summary as Summary
from espalier.calibration.comparison import between as between
from espalier.calibration.comparison import crossed_interval as crossed_interval
from espalier.calibration.comparison import differences as differences
from espalier.calibration.comparison import ece_debiased as ece_debiased
from espalier.calibration.comparison import t_interval as t_interval
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
from espalier.calibration.scores import bootstrap_interval as bootstrap_interval
from espalier.calibration.scores import brier as brier
from espalier.calibration.scores import brier_scores as brier_scores
from espalier.calibration.scores import classification_summary as classification_summary
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
from espalier.calibration.scores import regression_summary as regression_summary
from espalier.calibration.scores import reliability as reliability
from espalier.calibration.scores import rmse as rmse
from espalier.calibration.scores import squared_errors as squared_errors

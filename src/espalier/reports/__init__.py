"""What a run came to, in one page that a person can send to a colleague.

look.py        a run as the report sees it: fit, data, predictions
report.py      the page: headline, comparison, what was run (tested in test_report.py)
classes.py     sections on labels: reliability, selective prediction, classes, examples
calibrators.py scores and reliability before and after calibrators
groups.py      sections on groups of the rows
promises.py    certificates, and what they promise of selective prediction
targets.py     sections on regressions: PIT, coverage, residuals
worlds.py      sections on other worlds, corrupted images and model criticism
topology.py    sections on the mask and on training
figures.py     pictures as figures with their data
tables.py      scores with their intervals
"""

from __future__ import annotations

from espalier.reports.report import write_page as write_page

"""Methods crossed with sparsities, seeds and variants: `espalier compare`.

grid.py      a grid file as runs and cells; what makes no sense is refused
names.py     what runs and cells are called (tested in test_grid.py)
checks.py    what is looked at before that: the folder, the data (tested in test_compare.py)
compare.py   trains the runs, has the cells scored, gathers
cells.py     scores one cell
outside.py   inputs of another world: how well a cell tells them from its own
workers.py   where tasks run: processes here, or a Dask cluster
report.py    table.md, cells.csv, differences.csv
figures.py   the pictures
"""

from __future__ import annotations

from espalier.grids.compare import Outcome as Outcome
from espalier.grids.compare import Pair as Pair
from espalier.grids.compare import Plan as Plan
from espalier.grids.compare import plan as plan
from espalier.grids.grid import Cell as Cell
from espalier.grids.grid import Grid as Grid
from espalier.grids.grid import Method as Method
from espalier.grids.grid import read as read
from espalier.grids.report import summary as summary
from espalier.grids.workers import Failure as Failure
from espalier.grids.workers import Workers as Workers

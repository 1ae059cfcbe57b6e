"""Recipes and run folders: what was asked, what was reached, and all that is needed to go on after a kill.

lines.py     the one reader and writer of YAML, for recipes and grids
recipes.py   a recipe: programs and options, from words and YAML
folder.py    start, resume, load: a run folder
teaching.py  a run that there is, distilled
trust.py     whose code is run
"""

from __future__ import annotations

from espalier.nested import plain as plain
from espalier.runs.folder import CHECKPOINT as CHECKPOINT
from espalier.runs.folder import check_finished as check_finished
from espalier.runs.folder import data_of as data_of
from espalier.runs.folder import ensemble as ensemble
from espalier.runs.folder import finished as finished
from espalier.runs.folder import load as load
from espalier.runs.folder import name_of as name_of
from espalier.runs.folder import recipe_in as recipe_in
from espalier.runs.folder import repeat as repeat
from espalier.runs.folder import resume as resume
from espalier.runs.folder import start as start
from espalier.runs.folder import tidy as tidy
from espalier.runs.folder import versions as versions
from espalier.runs.recipes import Recipe as Recipe
from espalier.runs.recipes import resolve as resolve
from espalier.runs.teaching import distil as distil

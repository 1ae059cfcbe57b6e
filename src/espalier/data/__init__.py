"""Data sets: named, from files or from the user's own arrays and datasets; cut by seed, standardised, hashed.

sets.py        `load`: a named set, an .npz file or a folder of images as `Data`
arrays.py      `from_arrays`: one's own NumPy, torch or pandas
datasets.py    `from_datasets`: torch map-style datasets, which stream
cut.py         the four parts, by seed; standardised by the training rows; identified by hash
unlabelled.py  a file of rows without labels
repeats.py     rows that stand in two places
streamed.py    rows that are decoded when asked for, by a DataLoader's workers
images.py      a folder of images
corruptions.py images corrupted on the fly: thirteen kinds, five severities
worlds.py      a run's own rows, corrupted; rows of other sets as the run's inputs
balls.py       what lies within eps of a row
groupings.py   groups of a source's rows, from a CSV file
readers.py     one reader per file format
archives.py    arrays of an .npz file, judged before they are allocated
noise.py       wrong labels to train on
mixtures.py    data whose truth is known
labels.py      labels of any kind as numbers, targets as they are
downloads.py   public sets fetched from their addresses, whole or not at all
"""

from __future__ import annotations

from espalier.data.arrays import from_arrays as from_arrays
from espalier.data.balls import Ball as Ball
from espalier.data.balls import ball_of as ball_of
from espalier.data.corruptions import CORRUPTIONS as CORRUPTIONS
from espalier.data.corruptions import SEVERITIES as SEVERITIES
from espalier.data.corruptions import Corruption as Corruption
from espalier.data.corruptions import corrupted as corrupted
from espalier.data.datasets import from_datasets as from_datasets
from espalier.data.groupings import groups_of as groups_of
from espalier.data.images import ImageRows as ImageRows
from espalier.data.mixtures import Mixture as Mixture
from espalier.data.mixtures import mixture as mixture
from espalier.data.mixtures import noisy as noisy
from espalier.data.noise import with_label_noise as with_label_noise
from espalier.data.sets import available as available
from espalier.data.sets import load as load
from espalier.data.sets import names as names
from espalier.data.streamed import Streamed as Streamed
from espalier.data.worlds import Shifted as Shifted
from espalier.data.worlds import out_of_distribution as out_of_distribution
from espalier.data.worlds import shifted as shifted
from espalier.nested import Together as Together

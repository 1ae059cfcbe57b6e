"""Data sets: named, from files or from the user's own arrays; cut by seed, standardised by the training rows, hashed.

sets.py        `load`: a named set, an .npz file or a folder of images as `Data`
readers.py     one reader per file format
downloads.py   public sets fetched from their addresses, whole or not at all
"""

from __future__ import annotations

from espalier.data.readers import ImageRows as ImageRows
from espalier.data.sets import available as available
from espalier.data.sets import load as load
from espalier.data.sets import names as names

"""Pages for people: what stands on one as data, and one look for all of them.

blocks.py      Section, Text, Table, Figure, Gallery, Details: what a page is made of
render.py      blocks as one HTML file that needs nothing else (templates/page.html)
"""

from __future__ import annotations

from espalier.pages.blocks import Block as Block
from espalier.pages.blocks import Cell as Cell
from espalier.pages.blocks import Details as Details
from espalier.pages.blocks import Example as Example
from espalier.pages.blocks import Figure as Figure
from espalier.pages.blocks import Gallery as Gallery
from espalier.pages.blocks import Page as Page
from espalier.pages.blocks import Section as Section
from espalier.pages.blocks import Table as Table
from espalier.pages.blocks import Text as Text
from espalier.pages.render import html as html

"""The page of the theory: every claim once, with its verdict, its figures and its pictures; nothing is taken for markup."""

from __future__ import annotations

import math
from html.parser import HTMLParser

from espalier.theory.claims import Finding, Line
from espalier.theory.page import page

BOUND = Finding("bound with quadrature", 0.5, 1.0, "nats", {"gap": math.nan})
SIGN = Finding("<b>one</b> with two", 2.0, 1.0, "relative", breaks="Where p > 1/2.")
HOLDS = Line("kl-bound", "the KL <= its bound", "note 2.5", BOUND, 1.25)
FAILS = Line("sign", "a & b", "ours", SIGN, 0.5)


class Read(HTMLParser):
    """The page as a browser has it: text, anchors, links to them, pictures, tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.anchors, self.links, self.images, self.tags = "", set(), set(), [], set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self.anchors |= {found["id"]} if "id" in found else set()
        self.links |= {found["href"]} if tag == "a" else set()
        self.images += [found["src"]] if tag == "img" else []

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_heading_counts_the_claims_that_hold() -> None:
    assert "1 of 2 claims hold." in Read(page([HOLDS, FAILS], {"kl-bound": {}, "sign": {}})).text
    assert "1 of 1 claims hold (quick run" in Read(page([HOLDS._replace(quick=True)], {"kl-bound": {}})).text


def test_every_claim_has_a_line_that_leads_to_its_section_with_its_pictures() -> None:
    read = Read(page([HOLDS, FAILS], {"kl-bound": {"kl-1.png": "Left", "kl-2.png": "Right"}, "sign": {}}))
    assert read.anchors == {"main", "kl-bound", "sign"}
    assert read.links == {"#main", "#kl-bound", "#sign"}
    assert read.images == ["kl-1.png", "kl-2.png"]
    for said in ("the KL <= its bound", "note 2.5; 1.2 s", "Discrepancy 2, tolerance 1 relative", "Where p > 1/2."):
        assert said in read.text


def test_what_claims_say_is_text_and_not_markup() -> None:
    read = Read(page([FAILS], {"sign": {}}))
    assert "<b>one</b> with two" in read.text
    assert "a & b" in read.text


def test_figures_are_json_in_which_what_is_not_finite_is_null() -> None:
    read = Read(page([HOLDS], {"kl-bound": {}}))
    assert '{\n "gap": null\n}' in read.text
    assert "details" not in Read(page([FAILS], {"sign": {}})).tags

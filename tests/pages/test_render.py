"""Claims about pages: whole in one file, text taken as text, fit for a phone, a printer and a screen reader."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from browser import SHEET, look, needs_chromium, printed, serious
from espalier import pages


def picture(width: int = 900) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, 80), (0, 114, 178)).save(file, "PNG")
    return file.getvalue()


def tall_picture() -> bytes:
    file = io.BytesIO()
    Image.new("L", (300, 2400)).save(file, "PNG")
    return file.getvalue()


def page() -> pages.Page:
    wide = pages.Table("Scores", ["way", *(f"score {i}" for i in range(12))], [["ticket", *["0.1234 [0.1, 0.2]"] * 12]])
    told = pages.Table("Verdicts", ["claim", "verdict"], [[pages.Cell("a", link="#a"), pages.Cell("holds", "holds")]], False)
    rows = (["x", "y"], [[1, 2.5], [2, "a,b"]])
    figure = pages.Figure(picture(), "Risk against coverage", "The risk falls from 0.2 to 0.1.", rows)
    shown = pages.Gallery("The most certain", [pages.Example(picture(8), "a digit, 3", ["3 as 3", "0.99"])] * 3)
    blocks = [pages.Text("<b>a</b> & b"), wide, figure, shown, pages.Details("How", "x" * 400), pages.Text("ours", "source")]
    sections = [pages.Section("First", blocks, "a"), pages.Section("Second", [told], "b", "fails")]
    return pages.Page("Run & more", "A run", "What <was> run.", sections, [told])


def test_a_page_is_one_file_of_text_that_is_taken_as_text() -> None:
    text = pages.html(page())
    assert "&lt;b&gt;a&lt;/b&gt; &amp; b" in text
    assert "<title>Run &amp; more</title>" in text
    assert "What &lt;was&gt; run." in text
    assert "<script" not in text
    assert [link for link in re.findall(r'(?:src|href)="([^"]*)"', text) if not link.startswith(("data:", "#"))] == []
    assert text.count("<table") == 3
    assert re.findall(r'<(?:h1|h2|h3)', text) == ["<h1", "<h2", "<h3", "<h2"]


def test_sections_are_linked_by_ids_that_are_one_word_and_theirs_alone() -> None:
    names = ["classes-a of b", "world-x", "world-x", "main"]
    text = pages.html(pages.Page("t", "h", "l", [pages.Section(name, [], name) for name in names]))
    ids = re.findall(r'<h2 id="([^"]*)"', text)
    assert ids == ["classes-a-of-b", "world-x", "world-x-2", "main-2"]
    assert re.findall(r'<section aria-labelledby="([^"]*)"', text) == ids
    assert re.findall(r'<li><a href="#([^"]*)"', text) == ids


def test_a_figure_gives_its_data_as_a_file() -> None:
    text = pages.html(page())
    source = re.search(r'download="risk-against-coverage.csv" href="data:text/csv;base64,([^"]+)"', text)
    assert source
    assert base64.b64decode(source[1]).decode() == 'x,y\r\n1,2.5\r\n2,"a,b"\r\n'


def test_a_picture_beside_the_page_is_named_and_not_held() -> None:
    figure = pages.Figure("a.png", "A", "says")
    assert '<img src="a.png" alt="says">' in pages.html(pages.Page("t", "h", "l", [], [figure]))


def test_equal_pages_are_equal_files() -> None:
    assert pages.html(page()) == pages.html(page())


@needs_chromium
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_has_nothing_to_complain_of(tmp_path: Path, width: int) -> None:
    found = look(pages.html(page()), tmp_path, width)
    assert found["seen"] == []
    assert found["asked"] == []
    assert len(found["images"]) == 4
    assert all(found["images"])
    assert found["width"] == width
    assert found["scroll"] <= width
    assert serious(found) == []


@needs_chromium
def test_on_paper_nothing_is_closed_cut_or_wider_than_the_sheet(tmp_path: Path) -> None:
    few = pages.Table("Few", ["way", "score"], [["ticket", "0.1"]])
    tall = pages.Figure(tall_picture(), "Tall", "a tower")
    own = page()._replace(sections=[pages.Section("First", [tall, few, pages.Details("How", "x" * 400)], "a")], blocks=[])
    width, height = SHEET
    screen, paper = (look(text, tmp_path, width) for text in (pages.html(own), printed(pages.html(own))))
    assert (screen["unseen"], paper["unseen"]) == (1, 0)
    assert screen["figures"][0] > height
    assert paper["figures"][0] < height / 2
    assert paper["scroll"] <= width


@needs_chromium
def test_the_browser_would_have_complained(tmp_path: Path) -> None:
    """Of a picture that is none, a line that is too long, a picture without words, and a script that fails."""
    broken = pages.html(page()).replace('alt="a digit, 3"', "").replace("<main", "<div style='width:900px'>x</div><main")
    broken = broken.replace("data:image/png;base64,", "data:image/png;base64,AAAA", 1)
    broken = broken.replace("</main>", "</main><script>f()</script>")
    found = look(broken, tmp_path, 390)
    assert not all(found["images"])
    assert found["scroll"] > 390
    assert [one["id"] for one in serious(found)] == ["image-alt"]
    assert any("f is not defined" in said for said in found["seen"])

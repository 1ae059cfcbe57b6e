"""What headless Chromium makes of a page: errors, pictures, widths, and what axe-core finds for accessibility."""

from __future__ import annotations

import html as entities
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from places import ROOT

AXE = ROOT / "tests" / "vendor" / "axe.min.js"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--disable-extensions"]
WATCH = """
<script>window.seen = []; addEventListener("error", e => seen.push(String(e.message || e.target.src || e.target.href)), true);
for (const kind of ["error", "warn"]) {
  const old = console[kind]; console[kind] = (...a) => { seen.push(a.join(" ")); old(...a) } }
</script>
"""
LOOK = """
addEventListener("load", async () => {
  const images = [...document.images];
  const found = await axe.run(document, {resultTypes: ["violations"]});
  const report = {
    seen: window.seen, images: images.map(image => image.naturalWidth), scroll: document.documentElement.scrollWidth,
    width: innerWidth, asked: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
    unseen: [...document.querySelectorAll("details pre")].filter(each => !each.checkVisibility()).length,
    figures: [...document.querySelectorAll("figure")].map(each => each.getBoundingClientRect().height),
    violations: found.violations.map(v => ({
      id: v.id, impact: v.impact, nodes: v.nodes.slice(0, 3).map(n => n.html.slice(0, 120)) })),
  };
  const told = document.createElement("pre"); told.id = "told"; told.textContent = JSON.stringify(report);
  (parent === window ? document : parent.document).body.append(told);
});
"""


def look(page: str, folder: Path, width: int = 1200) -> dict[str, Any]:
    """seen: errors and warnings on the console; images: natural widths, 0 where one could not be decoded; scroll, width: of the
    document and of its window; asked: what it wanted from elsewhere; violations: of accessibility, by axe-core; unseen: blocks
    that are closed; figures: their heights."""
    watched = page.replace("<head>", f"<head>{WATCH}", 1)
    watched = watched.replace("</body>", f"<script>{AXE.read_text()}</script><script>{LOOK}</script></body>", 1)
    frame = f'<!doctype html><body><iframe width="{width}" height="900" srcdoc="{entities.escape(watched)}"></iframe></body>'
    (folder / "frame.html").write_text(frame, encoding="utf-8")
    words = [str(CHROMIUM), *FLAGS, "--virtual-time-budget=30000", "--dump-dom", (folder / "frame.html").as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.S)
    assert told, done.stderr[-2000:]
    report: dict[str, Any] = json.loads(entities.unescape(told[1]))
    return report


SHEET = (718, 1047)
"""Width and height that A4 leaves within margins of 1 cm, in pixels of CSS."""


def printed(page: str) -> str:
    """The page as a printer has it, for a window."""
    assert page.count("@media print") == 1
    return page.replace("@media print", "@media all")


def serious(report: dict[str, Any]) -> list[Any]:
    """Violations that would keep somebody out."""
    return [found for found in report["violations"] if found["impact"] in ("serious", "critical")]


def screenshot(page: Path, into: Path, width: int, height: int) -> None:
    """A picture of a page, for people."""
    words = [str(CHROMIUM), *FLAGS, f"--window-size={width},{height}", f"--screenshot={into}", page.resolve().as_uri()]
    subprocess.run(words, capture_output=True, check=True, timeout=120)

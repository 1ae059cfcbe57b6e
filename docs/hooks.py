"""For MkDocs: the benchmarks' pages, which stand beside what makes them, belong to the site, too.

In the repository a page of this folder links to `../examples/benchmarks/RESULTS.md`; in the site that file is
`examples/benchmarks/RESULTS.md`, beside the pages. A page of the benchmarks links to `../../docs/field.md`, which is
`../../field.md` there.
"""

# ruff: noqa: INP001 - MkDocs loads this file by its path

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

BENCHMARKS = "examples/benchmarks"


def on_files(files: Files, config: Any) -> Files:
    """Add the Markdown and the pictures of examples/benchmarks."""
    root = Path(config.config_file_path).parent
    for path in sorted((root / BENCHMARKS).iterdir()):
        if path.suffix in (".md", ".png"):
            files.append(File.generated(config, f"{BENCHMARKS}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links that lead out of this folder and into that one, and back."""
    return markdown.replace(f"](../{BENCHMARKS}/", f"]({BENCHMARKS}/").replace("](../../docs/", "](../../")

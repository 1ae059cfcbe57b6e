"""Does it work on another Python, or with the lowest versions that it declares? An environment of its own, and the suite there.

    python examples/benchmarks/versions.py 3.13 --at ENVS [TESTS ...]
    python examples/benchmarks/versions.py 3.11 --lowest --at ENVS [TESTS ...]

A wheel is built and installed from scratch with uv (`pip install uv`), and `espalier fit` and `evaluate` run from it outside the
checkout. Then the checkout takes the wheel's place and the tests are run, all that are not slow or those that are named.
--lowest: of every dependency of the package and its extras the lowest version that pyproject.toml allows; what only tests need is
new, and what old libraries say of each other is no error. The last line is a row for a table.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXTRAS = ("dask", "docs", "hub", "lightning", "onnx", "optuna", "parquet", "sign", "tensorboard")
SHOWN = ("torch", "pyro-ppl", "gpytorch", "numpy", "arviz")
FIT = ["fit", "--config", str(ROOT / "examples" / "digits-cigl.yaml"), "--epochs", "3", "--delta-t", "10", "--out", "run"]


def tools() -> list[str]:
    """What only tests need: the extra `dev`, without the package's own extras in it."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        dev: list[str] = tomllib.load(file)["project"]["optional-dependencies"]["dev"]
    return [name for name in dev if not name.startswith("espalier")]


def done(words: Sequence[str | Path], folder: Path = ROOT) -> str:
    """What a command said; it must end well."""
    print("$", *words, flush=True)
    return subprocess.run([str(word) for word in words], cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def installed(uv: str, python: str, at: Path, *, lowest: bool) -> Path:
    """The interpreter of an environment that holds the wheel and all that its tests need."""
    environment = at / f"{python.strip(os.sep).replace(os.sep, '-')}{'-lowest' if lowest else ''}"
    done([uv, "venv", "--quiet", "--allow-existing", "--python", python, environment])
    own = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    with tempfile.TemporaryDirectory() as folder:
        done([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder])
        (wheel,) = Path(folder).glob("*.whl")
        extras = [word for name in EXTRAS for word in ("--extra", name)]
        chosen = Path(folder) / "versions.txt"
        resolution = "lowest-direct" if lowest else "highest"
        project = ROOT / "pyproject.toml"
        done([uv, "pip", "compile", "--quiet", "--resolution", resolution, "--python", own, *extras, project, "-o", chosen])
        # Compiled at once: old libraries' syntax warnings are errors to a suite that is the first to compile them.
        done([uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", own, "-r", chosen, *tools(), wheel])
    return own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="a version or an interpreter, as uv finds it")
    parser.add_argument("tests", nargs="*", help="default: all")
    parser.add_argument("--at", type=Path, required=True, help="folder of environments, which are kept, outside the checkout")
    parser.add_argument("--lowest", action="store_true")
    parser.add_argument("--jobs", default="2", help="of pytest")
    arguments = parser.parse_intermixed_args()
    if (uv := shutil.which("uv")) is None:
        parser.error("expected uv on the path: pip install uv")
    python = installed(uv, arguments.python, arguments.at.resolve(), lowest=arguments.lowest)
    with tempfile.TemporaryDirectory() as outside:
        done([python, "-c", "import espalier; assert 'site-packages' in espalier.__file__, espalier.__file__"], Path(outside))
        done([python, "-m", "espalier", *FIT], Path(outside))
        print(done([python, "-m", "espalier", "evaluate", "run"], Path(outside)))
    done([uv, "pip", "install", "--quiet", "--python", python, "--no-deps", "--editable", ROOT])
    versions = done([python, "-c", f"from importlib.metadata import version\nprint(*map(version, {SHOWN}), sep=' | ')"]).strip()
    old = ["-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning"] if arguments.lowest else []
    words = [python, "-m", "pytest", "-q", "-n", arguments.jobs, "--dist", "worksteal", "-m", "not slow", *old, *arguments.tests]
    print("$", *words, flush=True)
    with subprocess.Popen([str(word) for word in words], cwd=ROOT, stdout=subprocess.PIPE, text=True) as suite:
        assert suite.stdout is not None
        line = ""
        for line in suite.stdout:
            print(line, end="", flush=True)
    print(f"\n| Python | {' | '.join(SHOWN)} | tests |\n{'|---' * (len(SHOWN) + 2)}|")
    print(f"| {arguments.python}{' lowest' if arguments.lowest else ''} | {versions} | {line.strip('= ').strip()} |")
    raise SystemExit(suite.returncode)


if __name__ == "__main__":
    main()

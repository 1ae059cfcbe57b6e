"""The command line: arguments in, sentences out; no arithmetic.

Everything heavy is imported by the command that needs it, so that `espalier --help` answers at once.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from espalier import __version__

COMMANDS = {
    "fit": "fit",
    "resume": "fit",
    "distil": "fit",
    "evaluate": "evaluate",
    "report": "report",
    "compare": "compare",
    "certify": "certify",
    "verify": "certify",
    "export": "export",
    "predict": "predict",
    "theory": "theory",
    "data": "shelves",
    "kernels": "shelves",
    "models": "shelves",
    "inferences": "shelves",
}
"""Command -> the module of this wing that has a function of its name: arguments in, exit code out."""

HELP = """\
Bayesian sparse training for networks that know what they don't know.

  espalier fit --model NAME --inference NAME --data NAME --out RUN   train; options come from the programs named
  espalier fit --config RECIPE.yaml --out RUN                        the same from a file; see examples/
  espalier resume RUN                                                go on with a run that was stopped
  espalier distil RUN --out NEW                                      one pass that says what a run's masked nets say
  espalier evaluate RUN [RUN ...]                                    scores of every way to predict, with intervals
  espalier report RUN [RUN ...] --out page.html                      what they came to, in one page of pictures
  espalier compare GRID.yaml --out DIR                               methods x sparsities x seeds, with paired intervals
  espalier certify RUN --risk error --alpha 0.03 --delta 0.05        prune as far as the calibration split can certify
  espalier verify CERTIFICATE                                        recompute a certificate: does it still hold?
  espalier export RUN --to FOLDER                                    a network to deploy: weights, configuration, model card
  espalier predict FOLDER --data X --out predictions.csv             what it, or a run, says of new rows
  espalier theory                                                    check every claim behind the method; a page of pictures
  espalier models | inferences | data                                what there is
  espalier data get NAME                                             download a public data set
  espalier kernels build                                             compile faster sparse products for this machine, once

--trust, with any of them: run programs (model.py, inference.py) that came with a run, a recipe or a grid, and that you have
not run here before. `espalier COMMAND --help` says more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, or 2 after one sentence on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # the process is ours
        _note_warnings()
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    try:
        if words[0] not in COMMANDS:
            from difflib import get_close_matches

            near = get_close_matches(words[0], COMMANDS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"expected a command of {', '.join(COMMANDS)}, got {words[0]!r}{hint}")
        module = importlib.import_module(f"espalier.cli.{COMMANDS[words[0]]}")
        command: Callable[[list[str]], int] = getattr(module, words[0])
        if "--trust" not in words:
            return command(words[1:])
        from espalier.runs.trust import told

        with told():
            return command([word for word in words[1:] if word != "--trust"])
    except BrokenPipeError:  # `espalier ... | head`: the reader has seen enough
        sys.stderr.close()
        return 0
    except (ValueError, OSError, RuntimeError) as error:
        print(f"espalier: {_clipped(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = {
            "compare": "; the same command goes on from the last checkpoints",
            "fit": "; `espalier resume RUN` goes on from the last checkpoint",
            "resume": "; the same command goes on from the last checkpoint",
        }
        print(f"espalier: stopped{goes_on.get(words[0], '')}", file=sys.stderr)
        return 130


def _note_warnings() -> None:
    """Our own warnings are sentences for whoever runs the command; from which line they come is nothing to them."""
    shown, ours = warnings.showwarning, str(Path(__file__).parents[1])

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **named: Any) -> None:
        if category is UserWarning and filename.startswith(ours):
            print(f"espalier: note: {message}", file=sys.stderr)
        else:
            shown(message, category, filename, *rest, **named)

    warnings.showwarning = show


def _clipped(sentence: str, most: int = 1000) -> str:
    """A sentence that a person can read: what came, and it may be megabytes, stands in its middle."""
    return sentence if len(sentence) <= most else f"{sentence[: most // 2]} ... {sentence[-most // 2 :]}"

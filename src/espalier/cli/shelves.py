"""`espalier models`, `inferences`, `data` and `kernels`: what there is."""

from __future__ import annotations

from espalier import shelf
from espalier.cli.parser import Parser


def data(words: list[str]) -> int:
    parser = Parser(prog="espalier data", description="List the data sets, or download one.")
    parser.add_argument("action", nargs="?", choices=["get"])
    parser.add_argument("name", nargs="?")
    parser.add_argument("--data-dir", help="default: ESPALIER_DATA, then ~/.cache/espalier")
    arguments = parser.parse_args(words)

    from espalier.data import available, downloads, names

    if arguments.action == "get":
        if arguments.name is None:
            raise ValueError(f"expected espalier data get NAME, with a name of {', '.join(names())}")
        from espalier.cli.progress import transfers

        with transfers() as seen:
            lines = downloads.get(arguments.name, arguments.data_dir, progress=seen)
        print("\n".join(lines))
        return 0
    here = set(available(arguments.data_dir))
    for name, about in names().items():
        print(f"{name:14s} {'here ' if name in here else '     '} {about}")
    print(
        "FILE.npz              arrays x, y and optionally train/test rows\nFOLDER                images, FOLDER/train/CLASS/*"
    )
    return 0


def _shelf(command: str, kind: shelf.Kind, words: list[str]) -> int:
    Parser(prog=f"espalier {command}").parse_args(words)
    for name in shelf.names(kind):
        print(f"{name:14s} {shelf.summary(kind, name)}")
    return 0


def models(words: list[str]) -> int:
    return _shelf("models", "models", words)


def inferences(words: list[str]) -> int:
    return _shelf("inferences", "inference", words)


def kernels(words: list[str]) -> int:
    parser = Parser(prog="espalier kernels", description="Say what sparse products are made by, or compile faster ones.")
    parser.add_argument("action", nargs="?", choices=["build"])
    arguments = parser.parse_args(words)

    from espalier.sparse import kernels as found

    if arguments.action == "build":
        print(f"compiled {found.build()}")
    print(f"in use: {found.current().name}")
    return 0

"""A recipe joins a model, an inference and data; its options are the parameters of their functions, under one roof.

Nothing is registered: what `espalier fit` accepts is read from the signatures of the programs that it is told to run.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ActionYesNo, ArgumentParser

from espalier import data, shelf
from espalier.runs import trust
from espalier.training.options import Training, words_of


class Option(NamedTuple):
    """One option: a keyword-only parameter of a program, or a field of `Training`."""

    name: str
    type: Any
    default: Any
    help: str
    owner: str


class Recipe(NamedTuple):
    """A run, resolved: what the command line, a recipe file and the signatures' defaults say together."""

    model: str
    inference: str
    data: str
    options: dict[str, Any]

    def config(self) -> dict[str, Any]:
        """As one flat mapping, which `--config` reads back."""
        return {"model": self.model, "inference": self.inference, "data": self.data, **self.options}

    def of(self, owner: str) -> dict[str, Any]:
        """The options that belong to `model`, `inference`, `data` or `training`."""
        return {o.name: self.options[o.name] for o in options(self.model, self.inference) if o.owner == owner}


_RESERVED = {"model", "inference", "data", "config", "out", "json", "help", "print_config"}
_COMMON = [
    Option(
        "maskable",
        list[str] | None,
        None,
        "glob patterns of the tensors to mask; default: Linear and Conv weights",
        "run",
    ),
    Option(
        "init", str | None, None, "safetensors file of pretrained weights; --start magnitude keeps their largest", "run"
    ),
]


def options(model: str, inference: str) -> list[Option]:
    """Every option of a recipe with these programs.

    Raises ValueError where a model and an inference claim the same name, or a program is not found.
    """
    found = [
        *_COMMON,
        *_parameters(data.load, "data", {"name"}),
        *_parameters(shelf.load("models", model), "model", {"shape", "num_outputs"}),
        *_parameters(shelf.load("inference", inference), "inference", {"model", "data", "training", "watch"}),
        *_fields(),
    ]
    owners: dict[str, str] = {}
    for option in found:
        if option.default is inspect.Parameter.empty or option.name in _RESERVED:
            raise ValueError(
                f"expected option {option.name!r} of the {option.owner} to have a default and a name of its own"
            )
        if option.name in owners:
            raise ValueError(
                f"expected every option to have one meaning, but {option.name!r} belongs to {owners[option.name]} and to "
                f"{option.owner}: rename it in your program"
            )
        owners[option.name] = option.owner
    return found


def resolve(argv: Sequence[str], named_by: Path | None = None) -> Recipe:
    """The recipe that command-line words describe: `--config FILE` first, then every `--option value` over it.

    named_by: the file that the words are from, a grid, unless a person said them. Programs' own files that a person names are
    run; of those that a file names, `trust.check` decides.
    Raises ValueError, in one sentence, for unknown programs, unknown options (with the nearest) and values out of type.
    """
    words = [_dashed(word) for word in argv]
    file = _value(words, "config")
    written = read_config(Path(file)) if file else {}
    parts = _programs(words, written)
    for part, name in parts.items():
        if not name:
            raise ValueError(f"expected --{part} NAME, or a --config FILE that has it")
    _look_at_programs(words, parts, Path(file) if file else None, named_by)
    found = options(parts["model"], parts["inference"])
    known = [*parts, *(option.name for option in found)]
    for name in written:
        if name not in known:
            raise ValueError(f"expected an option of this recipe, got {name!r} in {file}{_nearest(name, known)}")
    parser = build_parser(found)
    from_file = [_as_word(name, value) for name, value in written.items() if name not in parts and value is not None]
    try:
        values = vars(parser.parse_args(_listed([*from_file, *words], found)))
    except ArgumentError as error:
        raise ValueError(_one_sentence(str(error), known)) from error
    return Recipe(**parts, options={option.name: values[option.name] for option in found})


def _look_at_programs(words: Sequence[str], parts: Mapping[str, str], file: Path | None, named_by: Path | None) -> None:
    for part in ("model", "inference"):
        path = Path(parts[part])
        if path.suffix == ".py" and path.is_file():
            source = named_by if _value(words, part) else file
            if source is None:
                trust.remember(path)
            else:
                trust.check(path, source)


def programs(words: Sequence[str]) -> dict[str, str]:
    """What command-line words name as model, inference and data; empty where they do not."""
    file = _value(words, "config")
    return _programs(words, read_config(Path(file)) if file else {})


def _programs(words: Sequence[str], written: Mapping[str, Any]) -> dict[str, str]:
    return {part: _value(words, part) or str(written.get(part) or "") for part in ("model", "inference", "data")}


def build_parser(found: Sequence[Option]) -> ArgumentParser:
    """A parser of the options, with their types, defaults and help."""
    parser = ArgumentParser(prog="espalier fit", exit_on_error=False, allow_abbrev=False, description=_DESCRIPTION)
    for part in ("model", "inference", "data"):
        parser.add_argument(f"--{part}", metavar="NAME", help=_PARTS[part])
    parser.add_argument("--config", metavar="FILE", help="recipe file (YAML); options on the command line win over it")
    groups = {owner: parser.add_argument_group(f"{owner} options") for owner in dict.fromkeys(o.owner for o in found)}
    for option in found:
        flag = "--" + option.name.replace("_", "-")
        if option.type is bool:
            groups[option.owner].add_argument(
                flag, action=ActionYesNo(no_prefix="no-"), default=option.default, help=option.help
            )
        else:
            groups[option.owner].add_argument(flag, type=option.type, default=option.default, help=option.help)
    return parser


_DESCRIPTION = "Train a model on data with an inference. Options come from the signatures of the programs named."
_PARTS = {
    "model": "a program of `espalier models`, or FILE.py with a function model(shape, num_outputs, *, ...)",
    "inference": "a program of `espalier inferences`, or FILE.py with a function infer(model, data, *, ..., seed)",
    "data": "a set of `espalier data`, FILE.npz, or a folder of images",
}


def _parameters(function: Callable[..., Any], owner: str, skip: set[str]) -> list[Option]:
    hints, annotated = typing.get_type_hints(function), typing.get_type_hints(function, include_extras=True)
    doc = inspect.getdoc(function) or ""
    said = {name: getattr(hint, "__metadata__", ("",))[0] for name, hint in annotated.items()}  # where several share it
    return [
        Option(
            name,
            _plain(hints.get(name, type(parameter.default))),
            parameter.default,
            _help(doc, name) or said.get(name, ""),
            owner,
        )
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in skip
    ]


def _fields() -> list[Option]:
    hints, doc = typing.get_type_hints(Training), inspect.getdoc(Training) or ""
    return [
        Option(field.name, _plain(hints[field.name]), field.default, _help(doc, field.name), "training")
        for field in dataclasses.fields(Training)
    ]


def _plain(hint: Any) -> Any:
    """What a command line can say of a type: of `str | Path | None` a string, of words or a callable the words."""
    if any(typing.get_origin(part) is Callable for part in typing.get_args(hint)):
        return typing.Literal[words_of(hint)]
    return str | None if Path in typing.get_args(hint) else hint


def _help(doc: str, name: str) -> str:
    """The sentence of a docstring that begins with `name:`."""
    match = re.search(rf"\b{name}:\s+(.+?)(?:\.(?:\s|$)|\Z)", doc, re.DOTALL)
    return " ".join(match.group(1).split()) if match else ""


def _dashed(word: str) -> str:
    """`--drop_rate` is `--drop-rate`."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def _value(words: Sequence[str], name: str) -> str | None:
    """The value of an option among the words; the last one counts."""
    found = None
    for index, word in enumerate(words):
        if word == f"--{name}" and index + 1 < len(words):
            found = words[index + 1]
        if word.startswith(f"--{name}="):
            found = word.partition("=")[2]
    return found


def _listed(words: Sequence[str], found: Sequence[Option]) -> list[str]:
    """`--hidden 128,64` and `--hidden=128,64`, for options that take several values, as the parser's `[128, 64]`."""
    several = {"--" + o.name.replace("_", "-"): "str" in str(o.type) for o in found if _is_several(o.type)}
    result: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        result += [name, value] if equals and name in several else [word]
    for index, word in enumerate(result[1:], start=1):
        if result[index - 1] in several and not word.startswith(("[", "--")):
            items = [item.strip() for item in word.split(",")]
            result[index] = json.dumps(items) if several[result[index - 1]] else f"[{word}]"
    return result


def _is_several(hint: Any) -> bool:
    """A list or a tuple, also where None is allowed."""
    return any(typing.get_origin(part) in (list, tuple) for part in (hint, *typing.get_args(hint)))


def _as_word(name: str, value: Any) -> str:
    """A line of a recipe file as a word of the command line, so that both are checked alike."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag}={json.dumps(value) if isinstance(value, list) else value}"


def read_config(path: Path) -> dict[str, Any]:
    """A recipe file's lines. Files that it names and that stand beside it are meant. Raises ValueError where it is none."""
    import yaml

    if not path.is_file():
        raise ValueError(f"expected a recipe file, but {path} is not there")
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"expected {path} to be YAML: {' '.join(str(error).split())}") from error
    if not isinstance(written, dict):
        raise ValueError(f"expected {path} to hold lines of `option: value`")
    beside = {part: path.parent / str(written.get(part)) for part in ("model", "inference", "data", "init")}
    return written | {part: str(file) for part, file in beside.items() if written.get(part) and file.is_file()}


def _nearest(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, 1)
    return f": did you mean {near[0]!r}?" if near else ""


def _one_sentence(message: str, known: Sequence[str]) -> str:
    unknown = re.match(r"unrecognized arguments: --(\S+)", message)
    if unknown:
        name = unknown.group(1).partition("=")[0].replace("-", "_")
        return f"expected an option of this recipe, got --{unknown.group(1)}{_nearest(name, known)}"
    match = re.match(r'Parser key "(\w+)":\s*(.*)', message, re.DOTALL)
    key, rest = (f"--{match.group(1).replace('_', '-')}: ", match.group(2)) if match else ("", message)
    rest = re.sub(r"<class '(\w+)'>", r"\1", rest).replace("typing.", "")
    return key + " ".join(rest.split())

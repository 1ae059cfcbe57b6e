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

import yaml
from jsonargparse import ActionYesNo, ArgumentParser
from torch import Tensor

from espalier import data, shelf
from espalier.nested import plain
from espalier.runs import lines, trust
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
    given = _given(argv)
    file, written = _written(given)
    parts = _programs(given, written)
    for part, name in parts.items():
        if not name:
            raise ValueError(f"expected --{part} NAME, or a --config FILE that has it")
    _look_at_programs(given, parts, Path(file) if file else None, named_by)
    found = {option.name: option for option in options(parts["model"], parts["inference"])}
    known = [*parts, *found]
    for name in written:
        if name not in known:
            raise ValueError(f"expected an option of this recipe, got {name!r} in {file}{_nearest(name, known)}")
    from_file = [as_word(name, value) for name, value in written.items() if name not in parts and value is not None]
    switches = {f"no_{name}" for name, option in found.items() if option.type is bool}
    words = []
    for name, values in [*_given(from_file), *given]:
        if name not in (*known, *switches, "config"):
            raise ValueError(f"expected an option of this recipe, got {flag(name)}{_nearest(name, known)}")
        words.append(_as_one(name, values, found.get(name)))
    try:
        values = vars(build_parser([*found.values()]).parse_args(words))
    except ArgumentError as error:
        raise ValueError(_one_sentence(str(error))) from error
    return Recipe(**parts, options={name: values[name] for name in found})


def _look_at_programs(given: Given, parts: Mapping[str, str], file: Path | None, named_by: Path | None) -> None:
    said = _said(given)
    for part in ("model", "inference"):
        path = Path(parts[part])
        if parts[part].endswith(".py") and path.is_file():  # as the shelf has it: a file may be called nothing else
            source = named_by if said.get(part) else file  # an empty one is none
            if source is None:
                trust.remember(path)
            else:
                trust.check(path, source)


def programs(words: Sequence[str]) -> dict[str, str]:
    """What command-line words name as model, inference and data; empty where they do not. Raises `trust.Untrusted` for a program
    that a recipe file names and nobody here has had run."""
    given = _given(words)
    file, written = _written(given)
    parts = _programs(given, written)
    _look_at_programs(given, parts, Path(file) if file else None, None)
    return parts


Given = list[tuple[str, list[str]]]
"""Options in the order of the words, and the values of each."""


def _given(words: Sequence[str]) -> Given:
    """`--drop_rate` is `--drop-rate`. Raises ValueError for a word that belongs to no option."""
    found: Given = []
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            found.append((name[2:].replace("-", "_"), [value] if equals else []))
        elif not found:
            raise ValueError(f"expected words such as --option value, got {word!r}")
        else:
            found[-1][1].append(word)
    return found


def _written(given: Given) -> tuple[str, dict[str, Any]]:
    """The recipe file that is named, and its lines; the last one counts."""
    files = [values[0] for name, values in given if name == "config" and values]
    return (files[-1], read_config(Path(files[-1]))) if files else ("", {})


def _said(given: Given) -> dict[str, str]:
    """Of every option that was given a value the first one; of one that was said twice the last time counts."""
    return {name: values[0] for name, values in given if values}


def _programs(given: Given, written: Mapping[str, Any]) -> dict[str, str]:
    said = _said(given)
    return {part: said.get(part) or str(written.get(part) or "") for part in ("model", "inference", "data")}


def build_parser(found: Sequence[Option]) -> ArgumentParser:
    """A parser of the options, with their types, defaults and help."""
    parser = ArgumentParser(prog="espalier fit", exit_on_error=False, allow_abbrev=False, description=_DESCRIPTION)
    for part in ("model", "inference", "data"):
        parser.add_argument(f"--{part}", metavar="NAME", help=_PARTS[part])
    parser.add_argument("--config", metavar="FILE", help="recipe file (YAML); options on the command line win over it")
    groups = {owner: parser.add_argument_group(f"{owner} options") for owner in dict.fromkeys(o.owner for o in found)}
    for option in found:
        kind: dict[str, Any] = (
            {"action": ActionYesNo(no_prefix="no-")} if option.type is bool else {"type": option.type}
        )
        groups[option.owner].add_argument(flag(option.name), **kind, default=option.default, help=option.help)
    return parser


_DESCRIPTION = "Train a model on data with an inference. Options come from the signatures of the programs named."
_PARTS = {
    "model": "a program of `espalier models`, or FILE.py with a function model(shape, num_outputs, *, ...)",
    "inference": "a program of `espalier inferences`, or FILE.py with a function infer(model, data, *, ..., seed)",
    "data": "a set of `espalier data`, FILE.npz, or a folder of images",
}


def _parameters(function: Callable[..., Any], owner: str, skip: set[str]) -> list[Option]:
    try:
        hints, annotated = typing.get_type_hints(function), typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ValueError(f"expected annotations of {owner}'s options that stand when it runs, but {error}: import it") from error
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
    """What a command line can say of a type: of `str | Path | None` a string, of words or a callable the words, or a string; of
    a string or a tensor a string."""
    if any(typing.get_origin(part) is Callable or part is Tensor for part in typing.get_args(hint)):
        return typing.Literal[words_of(hint)] if words_of(hint) else str
    return str | None if Path in typing.get_args(hint) else hint


def _help(doc: str, name: str) -> str:
    """The sentence of a docstring that begins with `name:`."""
    match = re.search(rf"\b{name}:\s+(.+?)(?:\.(?:\s|$)|\Z)", doc, re.DOTALL)
    return " ".join(match.group(1).split()) if match else ""


def flag(name: str) -> str:
    """An option's name on the command line."""
    return "--" + name.replace("_", "-")


def _as_one(name: str, values: list[str], option: Option | None) -> str:
    """An option and its value as one word for the parser: `--hidden 128,64` is `--hidden=[128, 64]`.

    Raises ValueError for several values, and for numbers that are none, here and not in the parser, which reads `1:30` as
    90 and takes infinity.
    """
    several = option is not None and _is_several(option.type)
    if len(values) > 1:
        hint = f": write {flag(name)} [{','.join(values)}]" if several else ""
        raise ValueError(f"expected one value for {flag(name)}, got {' '.join(values)}{hint}")
    if not values:
        return flag(name)
    text = values[0]
    if text == "--":  # the parser would lose it
        raise ValueError(f"expected a value for {flag(name)}, got --")
    kinds, words = (_kinds(option.type), words_of(option.type)) if option else ({str}, ())
    kinds = {kind for kind in kinds if typing.get_origin(kind) is not typing.Literal} or kinds
    if several and not text.startswith("["):
        text = json.dumps([item.strip() for item in text.split(",")]) if str in kinds else f"[{text}]"
    if kinds <= NUMBERS.keys() and text not in words:
        try:
            leaves = _leaves(lines.load(text))
        except (yaml.YAMLError, ValueError):
            leaves = [text]
        for leaf in leaves:
            if type(leaf) not in kinds and not (type(leaf) is int and float in kinds):
                said = " or ".join([*(NUMBERS[kind] for kind in NUMBERS if kind in kinds), *words])
                raise ValueError(f"{flag(name)}: expected {said}, got {text if several else values[0]!r}")
            most = 2**63 if name.endswith("seed") else MOST[type(leaf)]
            if not -most < (leaf or 0) < most:
                raise ValueError(f"{flag(name)}: expected a number below {most:g}, got {text}")
        if kinds == {bool}:
            if len(leaves) != 1:
                raise ValueError(f"{flag(name)}: expected true or false, got {text}")
            return flag(name if leaves[0] else f"no_{name}")
    return f"{flag(name)}={text}"


NUMBERS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
MOST = {int: 10**9, float: 1e38, bool: 2, type(None): 1}
"""What no machine can hold: sizes and steps, and numbers of single precision. A seed may be larger."""


def _kinds(hint: Any) -> set[Any]:
    """The types of single values in a hint: int for `tuple[int, ...] | None`, and None."""
    parts = [part for part in typing.get_args(hint) if part is not ...]
    return set().union(*map(_kinds, parts)) if parts and typing.get_origin(hint) is not typing.Literal else {hint}


def _leaves(value: Any) -> list[Any]:
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list) else [value]


def _is_several(hint: Any) -> bool:
    """A list or a tuple, also where None is allowed."""
    return any(typing.get_origin(part) in (list, tuple) for part in (hint, *typing.get_args(hint)))


def as_word(name: str, value: Any) -> str:
    """A line of a recipe or a grid as a word of the command line, so that all are checked alike."""
    if isinstance(value, Mapping):
        raise ValueError(f"{flag(name)}: expected one value, got {value!r}")
    plain = isinstance(value, str)
    return f"{flag(name)}={value if plain else json.dumps(value, ensure_ascii=False)}"


def check_written(recipe: Recipe) -> None:
    """Raises ValueError where a recipe file would not give these options back: nobody could resume the run, or read it."""
    own = plain(recipe.config())
    try:
        written = lines.load(lines.dump(own))
        again = plain(resolve([as_word(name, value) for name, value in written.items() if value is not None]).config())
    except (ValueError, TypeError, yaml.YAMLError) as error:
        why = str(error).split("\n")[0]
        raise ValueError(f"expected options that a recipe file can hold, numbers, words and lists of them, but {why}") from error
    if lost := [name for name in own if again.get(name) != own[name]]:
        found = f"{lost[0]} is {own[lost[0]]!r} before and {again.get(lost[0])!r} after"
        raise ValueError(f"expected options that a recipe file gives back, but {found}: use a number, a word or a list of them")


def read_config(path: Path) -> dict[str, Any]:
    """A recipe file's lines. Files that it names and that stand beside it are meant. Raises ValueError where it is none."""
    written = lines.options(lines.read(path, "a recipe file"), str(path))
    beside = {part: path.parent / str(written.get(part)) for part in ("model", "inference", "data", "init")}
    return written | {part: str(file) for part, file in beside.items() if written.get(part) and file.is_file()}


def _nearest(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, 1)
    return f": did you mean {near[0]!r}?" if near else ""


def _one_sentence(message: str) -> str:
    match = re.match(r'Parser key "(\w+)":\s*(.*)', message, re.DOTALL)
    key, rest = (f"{flag(match.group(1))}: ", match.group(2)) if match else ("", message)
    rest = re.sub(r"<class '(\w+)'>", r"\1", rest).replace("typing.", "")
    return key + " ".join(rest.split())

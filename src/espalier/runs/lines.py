"""Lines of `name: value`: the one reader and writer of the YAML that people write, recipes and grids.

Scalars mean what they mean in YAML 1.2's core schema, and on the command line too: `no` and `1:30` are words, `010` is ten,
`1e-3` a number. A file is bounded in size, in depth and in what its aliases come to; a name stands in it once.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES, MOST_VALUES, MOST_DEEP = 100_000, 20_000, 20
"""Of a file; of what is in it when its aliases are written out; of what stands within one another."""

_TAG = "tag:yaml.org,2002:"
_CORE = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": ("<<", "<"),  # of YAML 1.1, and in use
}
"""Kind of scalar -> what it looks like, and how it may begin."""
_RESOLVERS: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
for kind, (pattern, starts) in _CORE.items():
    for start in starts:
        _RESOLVERS.setdefault(start.strip("\0"), []).append((_TAG + kind, re.compile(rf"(?:{pattern})\Z")))


class _Loader(yaml.SafeLoader):
    """YAML of the core schema, refused where it would be surprising or too large."""

    yaml_implicit_resolvers = _RESOLVERS
    yaml_constructors = {None: yaml.SafeLoader.construct_undefined} | {
        _TAG + kind: yaml.SafeLoader.yaml_constructors[_TAG + kind] for kind in ("str", "seq", "map")
    }
    deep = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.deep += 1
        if self.deep > MOST_DEEP:
            raise yaml.MarkedYAMLError(problem=f"more than {MOST_DEEP} values within one another")
        node = super().compose_node(parent, index)
        self.deep -= 1
        return node

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if _size(node, {}) > MOST_VALUES:
            raise yaml.MarkedYAMLError(problem=f"more than {MOST_VALUES:,} values, its aliases written out")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            name = self.construct_object(key, deep=True) if key.tag != _TAG + "merge" else "<<"
            if isinstance(name, Hashable) and name in seen:
                raise yaml.MarkedYAMLError(problem=f"{name!r} stands twice", problem_mark=key.start_mark)
            seen |= {name} if isinstance(name, Hashable) else set()
        return super().construct_mapping(node, deep)

    def construct_core(self, node: Any) -> Any:
        text, kind = self.construct_scalar(node), node.tag.removeprefix(_TAG)
        if not re.fullmatch(_CORE[kind][0], text):  # it has a tag that says so
            raise yaml.MarkedYAMLError(problem=f"{text!r} is not of kind {kind}", problem_mark=node.start_mark)
        if kind == "int":
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if kind == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return {"t": True, "f": False}.get(text[:1].lower())


for kind in ("null", "bool", "int", "float"):
    _Loader.add_constructor(_TAG + kind, _Loader.construct_core)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would take for something else than words."""

    yaml_implicit_resolvers = {
        start: [*_RESOLVERS.get(start, []), *yaml.SafeDumper.yaml_implicit_resolvers.get(start, [])]
        for start in {**_RESOLVERS, **yaml.SafeDumper.yaml_implicit_resolvers}
    }


def _size(node: Any, known: dict[int, int]) -> int:
    """Values in a node. Aliases are the same node, and counted as often as they are used."""
    if isinstance(node, yaml.CollectionNode) and id(node) not in known:
        known[id(node)] = MOST_VALUES  # while it is looked into: one that holds itself has no end
        inner = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in inner)
    return known.get(id(node), 1)


def load(text: str) -> Any:
    """The value of a text. Raises yaml.YAMLError or ValueError where there is none."""
    return yaml.load(text, _Loader)


def dump(lines: Mapping[str, Any]) -> str:
    """A text that `load` reads as these lines, in their order."""
    return str(yaml.dump(dict(lines), Dumper=_Dumper, sort_keys=False))


def read(path: Path, what: str) -> dict[str, Any]:
    """The lines of a file. what: such as `a recipe file`. Raises ValueError, in one sentence, where there are none."""
    if not path.is_file():
        raise ValueError(f"expected {what}, but {path} is not there")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"expected {what} of at most {MOST_BYTES:,} bytes, but {path} has {path.stat().st_size:,}")
    try:
        written = load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"expected {path} to be UTF-8 text ({error}): save it as UTF-8") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"expected {path} to be YAML: {_reason(error)}") from error
    return named(written, str(path))


def _reason(error: Exception) -> str:
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    return f"{problem or ' '.join(str(error).split())}{f' (line {mark.line + 1})' if mark else ''}"


def named(value: Any, what: str) -> dict[str, Any]:
    """The value, if it is lines of `name: ...` with words for names. Raises ValueError where it is not."""
    if not isinstance(value, Mapping):
        raise ValueError(f"expected {what} to hold lines of `name: ...`, got {value!r}")
    for name in value:
        if not isinstance(name, str):
            raise ValueError(f"expected words for the names in {what}, got {name!r}: put it in quotes if it is one")
    return dict(value)


def options(value: Any, what: str) -> dict[str, Any]:
    """Lines whose names are options: `drop-rate` is `drop_rate`, and may not stand beside it."""
    found: dict[str, Any] = {}
    for name, own in named(value, what).items():
        if name.replace("-", "_") in found:
            raise ValueError(f"expected every option once in {what}, got {name!r} twice, with - and with _")
        found[name.replace("-", "_")] = own
    return found

"""A grid file: methods crossed with sparsities, seeds and named variants, as runs to train and cells to score.

    base: {model: mlp, data: fashion-mnist, batch_size: 128}           # options of every run, as in a recipe
    over: {regime: {interpolating: {epochs: 60}, short: {epochs: 5}}}  # optional axes: name -> options (nets, data, ...)
    sparsities: [0.8, 0.9]
    seeds: [0, 1, 2]
    methods:
      RigL:      {run: {inference: rigl}, predict: unmasked}
      RigL + TS: {run: {inference: rigl}, predict: unmasked, calibrate: temperature}
      CigL:      {run: {inference: cigl, drop_rate: {0.8: 0.3, 0.9: 0.2}}, predict: ticket}
      Ensemble:  {run: {inference: rigl}, predict: unmasked, members: 3}
      DRO:       {run: {inference: rigl}, predict: unmasked, members: [{loss: dro:10}, {loss: dro:500}, {}], pool: logits}
      Two halves: {run: {inference: rigl}, predict: unmasked, members: 2, weights: total}   # together as many as one net has
      Dense:     {run: {inference: dense}, sparsities: [0]}
    baseline: RigL            # or a list of them, each set against all methods; default: the first method
    num_samples: 16           # fresh masks of `redraw`
    split: test               # where cells are scored; validation while something is still being chosen
    outside: mnist            # optional: inputs of another world, to be told from the split's: AUROC of every uncertainty

Later options win: base, the axes in order, the method. An option may be given per sparsity or per name of an axis, or
both: `drop_rate: {interpolating: {0.8: 0.3, 0.9: 0.2}, short: 0.05}`. Files beside the grid may be named as in a recipe.
Methods whose runs come to the same recipe share one run, and an ensemble's first member is the run at the seed itself.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from espalier import data, shelf
from espalier.calibration.calibrators import CALIBRATORS, REGRESSION_CALIBRATORS
from espalier.data.noise import file_of
from espalier.grids.names import digest_of, folder_digest, identity, run_name, slug
from espalier.prediction.ensemble import Pool
from espalier.prediction.evaluation import SPLITS
from espalier.prediction.fit import How
from espalier.randomness import derived
from espalier.runs import lines
from espalier.runs.recipes import Recipe, as_word, resolve
from espalier.training.options import Training

MOST_CELLS, MOST_MEMBERS, MOST_DRAWS = 10_000, 100, 10_000
COLUMNS = {
    "method", "sparsity", "seed", "seeds", "baseline", "score", "difference", "verdict", "predict", "calibrate", "runs", "error",
}  # fmt: skip
"""Of the tables, beside scores and facts: no axis may be called so."""
OF_CELLS = re.compile(
    r".+_(low|high|relative|floor|debiased|flops|bytes)|(num|train|crossed|t|auroc)_.+|seconds.*|passes|accuracy|rmse.*|nll|brier|crps.*|coverage.*|.*ece.*"
)
"""What scores and facts are called."""
KEYS = ("base", "over", "sparsities", "seeds", "methods", "baseline", "num_samples", "split", "outside")


Weights = Literal["each", "total"]


class Method(NamedTuple):
    """How a method trains and predicts. `run`: its options; `members`: how many networks, or what options each has besides, of an
    ensemble that predicts by its mean of `pool`; `weights`: is the sparsity of each, or of all in total; `sparsities`: its own,
    where the grid's do not apply."""

    run: dict[str, Any]
    predict: How = "ticket"
    calibrate: str | None = None
    members: int | list[dict[str, Any]] | None = None
    pool: Pool = "probabilities"
    weights: Weights = "each"
    sparsities: list[float] | None = None

    def of_member(self, sparsity: float) -> float:
        """A member's sparsity."""
        return sparsity if self.weights == "each" else round(1 - (1 - sparsity) / len(self.each), 9)

    @property
    def each(self) -> list[dict[str, Any]]:
        """The options of each member."""
        return self.members if isinstance(self.members, list) else [{}] * (self.members or 1)


class Cell(NamedTuple):
    """One number of the table: a method at one variant, sparsity and seed.

    variant: one name per axis. runs: names of the runs that it averages, more than one for an ensemble. name: that of its
    files; it changes with whatever its scores depend on.
    """

    method: str
    variant: tuple[str, ...]
    sparsity: float
    seed: int
    runs: tuple[str, ...]
    predict: How
    calibrate: str | None
    name: str
    pool: Pool = "probabilities"


class Grid(NamedTuple):
    """A grid, resolved: every run by name and every cell, in the order of the table."""

    axes: tuple[str, ...]
    methods: tuple[str, ...]
    baselines: tuple[str, ...]
    num_samples: int
    split: str
    runs: dict[str, Recipe]
    cells: tuple[Cell, ...]
    outside: str | None = None

    def is_dense(self, method: str) -> bool:
        """Does a method stand at sparsity 0 alone? As a baseline it is what every point is set against."""
        return {cell.sparsity for cell in self.cells if cell.method == method} == {0.0}


def read(path: Path) -> Grid:
    """The grid in a YAML file. Raises ValueError, in one sentence, for whatever in it makes no sense."""
    return expand(lines.read(path, "a grid file"), path.parent, path)


def expand(written: Mapping[str, Any], folder: Path = Path(), source: Path | None = None) -> Grid:
    """The grid of a mapping, as the module describes it. folder: where the files that it names may stand. source: the file
    that it is from, unless a person wrote it down here and now.

    Raises ValueError for unknown keys, programs and options, values out of range, and cells that make no sense.
    """
    _known(written, KEYS, "the grid")
    folder_digest.cache_clear()  # files may have come since
    base, axes = lines.options(written.get("base", {}), "base"), _axes(written.get("over", {}))
    sparsities, seeds = _sparsities(written.get("sparsities"), "sparsities"), _seeds(written.get("seeds", [0]))
    methods = {name: _method(name, own) for name, own in _filled(written.get("methods"), "methods").items()}
    baselines = _baselines(written.get("baseline", next(iter(methods))), methods)
    num_samples, split = written.get("num_samples", 16), written.get("split", "test")
    if type(num_samples) is not int or not 1 <= num_samples <= MOST_DRAWS:
        raise ValueError(f"expected num_samples from 1 to {MOST_DRAWS:,}, got {num_samples!r}")
    if split not in SPLITS[1:]:
        raise ValueError(f"expected a split of {', '.join(SPLITS[1:])} to score on, got {split!r}")

    per_method = sum(len(method.sparsities or sparsities) * len(method.each) for method in methods.values())
    count = math.prod(map(len, axes.values())) * per_method * len(seeds)
    if count > MOST_CELLS:
        raise ValueError(f"expected a grid of at most {MOST_CELLS:,} networks, got {count:,}: cut it into several")

    outside = written.get("outside")
    if not isinstance(outside, str | None):
        raise ValueError(f"expected outside as the name of a set of images, a folder or an archive, got {outside!r}")
    outside = None if outside is None else _located("data", outside, folder)

    runs: dict[str, Recipe] = {}
    cells: list[Cell] = []
    every = sorted({s for method in methods.values() for s in method.sparsities or sparsities})
    resolved = functools.cache(lambda words: resolve(words, source))
    for variant, sparsity, (name, method) in product(product(*axes.values()), every, methods.items()):
        if sparsity not in (method.sparsities or sparsities):
            continue
        chosen = [axes[axis][value] for axis, value in zip(axes, variant, strict=True)]
        each = [[base, *chosen, method.run, own] for own in method.each]
        where = f"method {name!r} at {', '.join([*variant, f'sparsity {sparsity:g}'])}"
        try:
            own_sparsity = method.of_member(sparsity)
            recipes = [_recipe(layers, (*variant, sparsity), own_sparsity, folder, resolved) for layers in each]
            for recipe in recipes:
                _check(method, recipe, split)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        for seed in seeds:
            used = []
            for recipe, own in zip(recipes, _member_seeds(seed, len(recipes)), strict=True):
                run = recipe._replace(options={**recipe.options, "seed": own})
                used.append(run_name(run, own_sparsity))
                runs[used[-1]] = run
            cells.append(_cell(name, variant, sparsity, seed, tuple(used), method, num_samples, split, outside))
    return Grid(tuple(axes), tuple(methods), baselines, num_samples, split, runs, tuple(cells), outside)


def _baselines(written: Any, methods: Mapping[str, Method]) -> tuple[str, ...]:
    named = written if isinstance(written, list) else [written]
    for name in named:
        if name not in [*methods]:
            raise ValueError(f"expected a baseline of {', '.join(methods)}, got {name!r}{_near(str(name), methods)}")
    if not named or len(set(named)) < len(named):
        raise ValueError(f"expected a baseline, or a list of different ones, got {written!r}")
    return tuple(named)


def _axes(written: Any) -> dict[str, dict[str, dict[str, Any]]]:
    axes = {axis: {name: lines.options(own, f"{axis}: {name}") for name, own in _filled(names, axis).items()}
            for axis, names in lines.named(written, "over").items()}  # fmt: skip
    every = [name for names in axes.values() for name in names]
    if len(set(every)) < len(every):
        raise ValueError(f"expected names of variants that differ, got {', '.join(every)}: options are given per name")
    if reserved := {axis for axis in axes if axis in COLUMNS or OF_CELLS.fullmatch(axis)}:
        raise ValueError(f"expected another name for the axis {min(reserved)!r}: the table has a column of that name")
    return axes


def _method(name: str, written: Any) -> Method:
    own = lines.named(written, f"method {name!r}")
    _known(own, Method._fields, f"method {name!r}")
    method = Method(**{**own, "run": lines.options(own.get("run", {}), f"run of method {name!r}")})
    if method.predict not in get_args(How):
        raise ValueError(f"method {name!r}: expected predict of {', '.join(get_args(How))}, got {method.predict!r}")
    known = [*CALIBRATORS, *REGRESSION_CALIBRATORS]
    if method.calibrate is not None and method.calibrate not in known:
        raise ValueError(f"method {name!r}: expected calibrate of {', '.join(known)}, got {method.calibrate!r}")
    if method.pool not in get_args(Pool) or (method.pool != "probabilities" and method.members is None):
        raise ValueError(f"method {name!r}: expected pool {' or '.join(get_args(Pool))}, of several members, got {method.pool!r}")
    if method.weights not in get_args(Weights) or (method.weights == "total" and method.members is None):
        raise ValueError(f"method {name!r}: expected weights each or total, of several members, got {method.weights!r}")
    listed = isinstance(method.members, list)
    count = len(method.each) if listed else method.members
    if count is not None and (type(count) is not int or not 2 <= count <= MOST_MEMBERS):
        raise ValueError(
            f"method {name!r}: expected members from 2 to {MOST_MEMBERS}, got {count!r}: leave it out for one net"
        )
    if listed:
        method = method._replace(members=[lines.options(own, f"a member of method {name!r}") for own in method.each])
    if method.sparsities is not None:
        return method._replace(sparsities=_sparsities(method.sparsities, f"sparsities of method {name!r}"))
    return method


def _recipe(
    layers: Sequence[Mapping[str, Any]], point: tuple[Any, ...], sparsity: float, folder: Path, resolved: Any
) -> Recipe:
    """What these options come to at a point of the grid, at seed 0."""
    written = {name: value for layer in layers for name, value in layer.items()}
    if belongs := {"sparsity", "seed", "config", "out"} & set(written):
        raise ValueError(f"expected no option {min(belongs)!r} in a run: the grid's own lines say it")
    picked = {name: _pick(name, value, point) for name, value in written.items()}
    program = picked.get("model"), picked.get("inference"), picked.get("data")
    if not all(program):
        raise ValueError(
            "expected a model, an inference and data: name them in base, in an axis or in the method's run"
        )
    words = [as_word(name, _located(name, value, folder)) for name, value in picked.items() if value is not None]
    recipe: Recipe = resolved(tuple(words))
    if "seed" not in recipe.options:
        raise ValueError(f"expected an inference with an option seed, got {recipe.inference}")
    if "sparsity" in recipe.options:
        return recipe._replace(options={**recipe.options, "sparsity": sparsity})
    varies = any(_has_key(value, point[-1]) for value in written.values())
    if sparsity != 0 and not varies:
        raise ValueError(
            f"expected an inference that trains sparse, but {Path(recipe.inference).stem} has no option sparsity: give the "
            "method `sparsities: [0]`, or an option per sparsity, the width of a smaller net say"
        )
    return recipe


def _has_key(value: Any, key: Any) -> bool:
    return isinstance(value, Mapping) and (key in value or any(_has_key(inner, key) for inner in value.values()))


def _pick(name: str, value: Any, point: tuple[Any, ...]) -> Any:
    """An option's value at a point: itself, or the entry for the sparsity or variant, step by step."""
    while isinstance(value, Mapping):
        found = [key for key in value if key in point]
        if len(found) != 1:
            raise ValueError(
                f"expected option {name!r} to have one value here, got entries for {', '.join(map(str, value))}: give it "
                "per sparsity or per name of an axis"
            )
        value = value[found[0]]
    return value


def _located(name: str, value: Any, folder: Path) -> Any:
    """A file that an option names, beside the grid or here, by its whole path: workers stand elsewhere."""
    text = str(value)
    named = name in ("init", "data_dir") or (name == "data" and text not in data.names())
    if named or (name in ("model", "inference") and text.endswith(".py")):
        for path in (folder / Path(text).expanduser(), Path(text)):
            if path.exists():
                return str(path.resolve())
    if name == "label_noise" and (noise := file_of(value)):
        found = [path for path in (folder / noise[0], noise[0]) if path.exists()]
        return f"{found[0].resolve()}:{noise[1]}" if found else value
    return value


def _check(method: Method, recipe: Recipe, split: str) -> None:
    """Refuse what can be known to make no sense before anything is trained."""
    Training(**recipe.of("training"))
    said = recipe.options
    if said["init"] is not None and not Path(said["init"]).is_file():
        raise ValueError(f"expected a safetensors file of weights to start from, but {said['init']} is not there")
    if method.predict == "distilled" and "distill_epochs" not in said and recipe.inference in shelf.names("inference"):
        raise ValueError(
            f"expected inference distilled for predict distilled, got {recipe.inference}: it has no such net"
        )
    if method.calibrate is not None and not said["validation"] > 0:
        raise ValueError(
            f"expected a validation split to fit the {method.calibrate} on, got validation {said['validation']}"
        )
    if method.calibrate is not None and split == "validation":
        raise ValueError(
            f"expected cells scored where no {method.calibrate} was fitted: score them on test or calibration"
        )
    if split in said and not said[split] > 0:
        raise ValueError(f"expected a {split} split to score on, got {split} {said[split]}")
    unmasked = said.get("drop_rate") == 0
    if method.predict in ("redraw", "moments") and unmasked:
        raise ValueError(
            f"expected a drop_rate above 0 for predict {method.predict}, got 0: its draws are one network, `unmasked`"
        )
    if method.predict == "pairs" and unmasked and said.get("average_from", 1) >= 1:
        raise ValueError("expected several pairs for predict pairs, got drop_rate 0 and one pair: that is `unmasked`")


def _member_seeds(seed: int, members: int) -> Iterator[int]:
    """The seed itself, then seeds that no other seed of a grid leads to: ensembles at two seeds share no member."""
    yield seed
    for member in range(1, members):
        yield derived(seed, member)


def _cell(
    name: str, variant: tuple[str, ...], sparsity: float, seed: int, used: tuple[str, ...], method: Method,
    num_samples: int, split: str, outside: str | None,
) -> Cell:  # fmt: skip
    facts = {"runs": list(used), "predict": method.predict, "calibrate": method.calibrate, "split": split}
    facts |= {"outside": identity("data", outside)} if outside else {}
    facts |= {"pool": method.pool} if method.pool != "probabilities" else {}
    digest = digest_of({**facts, "num_samples": num_samples})
    file = f"{slug('-'.join([name, *variant, f'{sparsity:g}']))}-s{seed}-{digest}"
    return Cell(name, variant, sparsity, seed, used, method.predict, method.calibrate, file, method.pool)


def _filled(value: Any, what: str) -> dict[str, Any]:
    found = lines.named(value, what)
    if not found:
        raise ValueError(f"expected {what} to hold lines of `name: ...`, got none")
    return found


def _known(written: Mapping[Any, Any], known: Sequence[str], what: str) -> None:
    for key in written:
        if key not in known:
            raise ValueError(f"expected a line of {', '.join(known)} in {what}, got {key!r}{_near(str(key), known)}")


def _near(name: str, known: Any) -> str:
    near = get_close_matches(name, list(known), 1)
    return f": did you mean {near[0]!r}?" if near else ""


def _sparsities(written: Any, what: str) -> list[float]:
    fine = isinstance(written, list) and written and all(type(s) in (int, float) and 0 <= s < 1 for s in written)
    if not fine or len(set(written)) < len(written):
        raise ValueError(f"expected {what} as a list of different fractions in [0, 1), got {written!r}")
    return [float(s) for s in written]


def _seeds(written: Any) -> list[int]:
    fine = isinstance(written, list) and written and all(type(s) is int and 0 <= s < 2**63 for s in written)
    if not fine or len(set(written)) < len(written):
        raise ValueError(f"expected seeds as a list of different whole numbers from 0 to 2^63 - 1, got {written!r}")
    return list(written)

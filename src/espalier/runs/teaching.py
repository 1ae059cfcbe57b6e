"""Runs that one has already, distilled: their networks teach one sparse net."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

from espalier import nested, shelf, store
from espalier.data import unlabelled
from espalier.prediction.fit import Fit
from espalier.runs.folder import TEACHERS, _begin, _check_new, _conclude, check_finished, data_of, load, recipe_in
from espalier.runs.recipes import Recipe, options
from espalier.training.distillation import Lessons, check_later, teach
from espalier.training.options import Training
from espalier.training.streams import find_device
from espalier.training.watch import Watches


def distil(
    folder: str | Path,
    out: str | Path,
    *,
    others: Sequence[str | Path] = (),
    epochs: int = 0,
    learning_rate: float | None = None,
    masks: int = 0,
    inputs: str | Path | None = None,
    data_dir: str | None = None,
    source: str | None = None,
    watch: Watches = None,
) -> Fit:
    """A new run folder `out`: the fit of `folder` with a way to predict more, `distilled`, on its support.

    Of a run of `cigl` its recipe is that of `--inference distilled`, and so is its fit, bit for bit: one that is trained from
    that recipe ends with equal files. (Killed, it is that training which `espalier resume` goes on with.)
    With others, runs of the same data and any network that teach too, with inputs, and of a run without random masks whose pairs
    differ (mean field, a chain), the recipe stays the run's, and the record says who taught on what; killed, it is begun again by
    the same call.
    epochs, learning_rate, masks: of `Lessons`. inputs: a file of rows without labels, or a folder of images
    (`data.unlabelled`), that it learns on too. data_dir, source: as of `data_of`.
    Raises ValueError, before any work, where there is but one network to learn from, where the runs make no ensemble, for a run
    of `cigl` with options that `distilled` has not, and for inputs that are not the network's, or are held out.
    """
    folder, out = Path(folder), Path(out)
    every = [folder, *map(Path, others)]
    for one in every:
        check_finished(one)
    recipe, fits, data = recipe_in(folder, source), [load(one) for one in every], data_of(folder, data_dir, source)
    told, more = {"teachers": [_named(one) for one in every]}, None
    if inputs is not None:
        found = unlabelled.read(inputs, nested.plain(data.shape))
        told["inputs"] = [{"file": Path(inputs).resolve().name, "rows": str(len(found.x)), "hash": unlabelled.digest_of(found.x)}]
        more = found.prepared(data)
    _check_new(out, told)
    repeats = not others and more is None and recipe.inference in ("cigl", "distilled") and fits[0].masked
    lessons = Lessons(epochs, learning_rate, masks).plain()
    recipe = as_distilled(recipe, lessons) if repeats else recipe
    training = Training(**recipe.of("training"))
    for fit in fits:
        fit.to(find_device(training.device))
    fit, *rest = fits
    microbatches = recipe.options.get("microbatches", 1)
    teachers = check_later(fit, data, lessons, microbatches, rest, more)
    with store.owned(out):
        _check_new(out, None if repeats else told)
        if repeats:
            _begin(recipe, out)
        else:
            store.write_bytes(out / TEACHERS, store.canonical(told).encode())
        teach(teachers, data, lessons, training=training, seed=recipe.options["seed"], inputs=more, watch=watch)
        if not repeats:
            fit.record["distilled"] |= told
            _begin(recipe, out)
        return _conclude(fit, out, data)


def _named(folder: Path) -> dict[str, str]:
    return {"run": folder.resolve().name, "record": store.sha256((folder / "record.json").read_bytes())}


def as_distilled(recipe: Recipe, lessons: Lessons) -> Recipe:
    """The recipe of a training that ends as this one, distilled. Raises ValueError where there is none."""
    known = {option.name: option.default for option in options(recipe.model, "distilled")}
    own = inspect.signature(shelf.load("inference", recipe.inference)).parameters
    lost = [name for name, value in recipe.options.items() if name not in known and value != own[name].default]
    if recipe.options["rule"] in ("gradual", "one-shot"):
        lost.append("rule")
    if lost:
        raise ValueError(
            f"expected a run that `--inference distilled` could have trained, but {lost[0]} is {recipe.options[lost[0]]}"
        )
    kept = {name: recipe.options.get(name, default) for name, default in known.items()}
    return recipe._replace(inference="distilled", options=kept | lessons.asked())

"""Runs that one has already, distilled: their networks teach one sparse net."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

from espalier import shelf, store
from espalier.prediction.fit import Fit
from espalier.runs.folder import TEACHERS, _begin, _check_new, _conclude, check_finished, data_of, load, recipe_in
from espalier.runs.recipes import Recipe, options
from espalier.training.distillation import check_later, distill
from espalier.training.options import Training
from espalier.training.streams import find_device
from espalier.training.watch import Watches


def distil(
    folder: str | Path,
    out: str | Path,
    *,
    others: Sequence[str | Path] = (),
    epochs: int = 10,
    learning_rate: float = 0.02,
    masks: int = 1,
    data_dir: str | None = None,
    source: str | None = None,
    watch: Watches = None,
) -> Fit:
    """A new run folder `out`: the fit of `folder` with a way to predict more, `distilled`, on its support.

    Of a run of `cigl` its recipe is that of `--inference distilled --distill-epochs EPOCHS`, and so is its fit, bit for bit: one
    that is trained from that recipe ends with equal files. (Killed, it is that training which `espalier resume` goes on with.)
    With others, runs of the same data and any network that teach too, and of a run without random masks whose pairs differ (mean
    field, a chain), the recipe stays the run's, and the record says who taught; killed, it is begun again by the same call.
    masks: draws whose mean it is told, at every step. data_dir, source: as of `data_of`.
    Raises ValueError, before any work, where there is but one network to learn from, where the runs make no ensemble, or for a
    run of `cigl` with options that `distilled` has not.
    """
    folder, out = Path(folder), Path(out)
    every = [folder, *map(Path, others)]
    for one in every:
        check_finished(one)
    teachers = [_named(one) for one in every]
    _check_new(out, teachers)
    recipe, fits, data = recipe_in(folder, source), [load(one) for one in every], data_of(folder, data_dir, source)
    repeats = not others and recipe.inference in ("cigl", "distilled") and fits[0].masked
    recipe = as_distilled(recipe, epochs, learning_rate, masks) if repeats else recipe
    training = Training(**recipe.of("training"))
    for fit in fits:
        fit.to(find_device(training.device))
    fit, *rest = fits
    microbatches = recipe.options.get("microbatches", 1)
    check_later(fit, data, epochs, learning_rate, microbatches, masks, rest)
    with store.owned(out):
        _check_new(out, None if repeats else teachers)
        if repeats:
            _begin(recipe, out)
        else:
            store.write_bytes(out / TEACHERS, store.canonical(teachers).encode())
        distill(
            fit, data, training=training, seed=recipe.options["seed"], epochs=epochs, learning_rate=learning_rate,
            microbatches=microbatches, masks=masks, others=rest, watch=watch,
        )  # fmt: skip
        if not repeats:
            fit.record["distilled"]["teachers"] = teachers
            _begin(recipe, out)
        return _conclude(fit, out, data)


def _named(folder: Path) -> dict[str, str]:
    return {"run": folder.resolve().name, "record": store.sha256((folder / "record.json").read_bytes())}


def as_distilled(recipe: Recipe, epochs: int, learning_rate: float, masks: int = 1) -> Recipe:
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
    given = {"distill_epochs": epochs, "distill_rate": learning_rate, "distill_masks": masks}
    return recipe._replace(inference="distilled", options=kept | given)

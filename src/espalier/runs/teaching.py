"""A run that one has already, distilled: its masked networks teach one sparse net."""

from __future__ import annotations

import inspect
from pathlib import Path

from espalier import shelf, store
from espalier.prediction.fit import Fit
from espalier.runs.folder import _begin, _check_new, _conclude, check_finished, data_of, load, recipe_in
from espalier.runs.recipes import Recipe, options
from espalier.training.distillation import check_later, distill
from espalier.training.options import Training
from espalier.training.streams import find_device
from espalier.training.watch import Watches


def distil(
    folder: str | Path,
    out: str | Path,
    *,
    epochs: int = 10,
    learning_rate: float = 0.05,
    data_dir: str | None = None,
    source: str | None = None,
    watch: Watches = None,
) -> Fit:
    """A new run folder `out`: the fit of `folder` with a sixth way to predict, `distilled`.

    Its recipe is that of `--inference distilled --distill-epochs EPOCHS`, and so is its fit, bit for bit: a run that is trained
    from that recipe ends with equal files. (Killed, it is that training which `espalier resume` goes on with.)
    data_dir, source: as of `data_of`.
    Raises ValueError, before any work, for a run of another inference than `cigl` and `distilled`, or with options that the
    latter has not.
    """
    folder, out = Path(folder), Path(out)
    check_finished(folder)
    recipe = as_distilled(recipe_in(folder, source), epochs, learning_rate)
    _check_new(out)
    fit, data = load(folder), data_of(folder, data_dir, source)
    training = Training(**recipe.of("training"))
    fit.to(find_device(training.device))
    check_later(fit, data, epochs, learning_rate)
    with store.owned(out):
        _check_new(out)
        _begin(recipe, out)
        seed = recipe.options["seed"]
        distill(
            fit, data, training=training, seed=seed, epochs=epochs, learning_rate=learning_rate,
            microbatches=recipe.options["microbatches"], watch=watch,
        )  # fmt: skip
        return _conclude(fit, out, data)


def as_distilled(recipe: Recipe, epochs: int, learning_rate: float) -> Recipe:
    """The recipe of a training that ends as this one, distilled. Raises ValueError where there is none."""
    if recipe.inference not in ("cigl", "distilled"):
        raise ValueError(f"expected a run of cigl or distilled, whose networks have random masks, got one of {recipe.inference}")
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
    return recipe._replace(inference="distilled", options={**kept, "distill_epochs": epochs, "distill_rate": learning_rate})

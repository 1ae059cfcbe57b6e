"""Runs of several trainings: killed in any of them they resume to equal files."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from espalier import runs
from espalier.prediction import evaluation
from espalier.prediction.fit import WAYS, Fit
from espalier.runs.recipes import resolve
from hashed import hashes
from places import PROGRAM
from watches import Killed

pytestmark = pytest.mark.usefixtures("own_store")
RECIPES: dict[str, dict[str, Any]] = {  # ten steps an epoch
    "distilled": {"epochs": 4, "distill_epochs": 3, "delta_t": 6, "freeze": 0.5, "average_from": 0.5, "rule": "set"},
    "lottery": {"epochs": 3, "rounds": 2, "rewind_epochs": 1, "average_from": 0.5},
    "espn": {"epochs": 3, "mask_epochs": 2, "l1": 0.001, "average_from": 0.5},
    "searched": {"epochs": 3, "average_from": 0.5},
    "walker": {"inference": "searched", "epochs": 2, "by": "ppo", "search_steps": 130, "average_from": 0.5},
}
TOTAL = {"distilled": 70, "lottery": 100, "espn": 80, "searched": 60, "walker": 40}


@functools.cache
def recipe_text(name: str) -> str:
    return yaml.safe_dump({
        "model": str(PROGRAM), "inference": name, "data": "digits", "train_size": 160, "sparsity": 0.7,
        "drop_rate": 0.2, "batch_size": 16, "augment": "crop-flip", "bn_batches": 3, "learning_rate": 0.05, "seed": 3,
        **RECIPES[name],
    })  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Fit, dict[str, str]]]:
    @functools.cache
    def run(name: str) -> tuple[Path, Fit, dict[str, str]]:
        folder, watch = tmp_path_factory.mktemp("whole") / name, Killed()
        recipe_file = folder.with_suffix(".yaml")
        recipe_file.write_text(recipe_text(name))
        fit = runs.start(resolve(["--config", str(recipe_file)]), folder, watch, every=0)
        assert watch.seen == [TOTAL[name], TOTAL[name] // 10]
        return folder, fit, hashes(folder)

    return run


# Where each kill lands, counted in steps (or epochs' ends) of the process that is killed.
KILLS = {
    "distilled": {
        "in the first training": [{"step": 13}],
        "at its last step": [{"step": 40}],
        "at its end": [{"epoch": 4}],
        "at the first step of distillation": [{"step": 41}],
        "in distillation": [{"step": 57}],
        "at the end of an epoch of it": [{"epoch": 6}],
        "in each": [{"step": 25}, {"step": 33}, {"step": 12}],  # epoch 3, then distillation epoch 2, then 3
    },
    "lottery": {
        "before the rewind point": [{"step": 5}],
        "at the rewind point": [{"epoch": 1}],
        "in the dense training": [{"step": 15}],
        "at its end": [{"epoch": 4}],
        "in the second": [{"step": 52}],
        "in the last": [{"step": 95}],
        "in each": [{"step": 8}, {"step": 38}, {"step": 25}, {"step": 33}],
    },
    "espn": {
        "in the search": [{"step": 37}],
        "at its end": [{"epoch": 5}],
        "in each": [{"step": 25}, {"step": 25}, {"step": 22}],
    },
    "searched": {
        "in the dense training": [{"step": 15}],
        "at its end, before the search": [{"epoch": 3}],
        "in the second": [{"step": 52}],
        "in each": [{"step": 8}, {"step": 38}, {"step": 25}],
    },
    "walker": {"before the search and after it": [{"epoch": 2}, {"step": 15}]},
}


@pytest.mark.parametrize(("name", "case"), [
    (name, case) for name, cases in KILLS.items() for case in cases
])  # fmt: skip
def test_a_run_of_several_trainings_killed_in_any_resumes_to_equal_files(
    name: str, case: str, whole: Callable[[str], Any], tmp_path: Path
) -> None:
    _, _, expected = whole(name)
    (tmp_path / "recipe.yaml").write_text(recipe_text(name))
    folder, done = tmp_path / "run", 0
    for number, kill in enumerate(KILLS[name][case]):
        watch = Killed(**kill)
        recipe = resolve(["--config", str(tmp_path / "recipe.yaml")])
        with pytest.raises(KeyboardInterrupt):
            runs.resume(folder, watch, every=0) if number else runs.start(recipe, folder, watch, every=0)
        assert not runs.finished(folder)
        done = 10 * ((done + watch.seen[0]) // 10)
        if watch.seen[0] % 10 == 0 and "step" in kill:
            done -= 10  # a step's end is before its epoch's
    last = Killed()
    runs.resume(folder, last)
    assert last.seen[0] == TOTAL[name] - done  # what a checkpoint holds is not done again
    assert hashes(folder) == expected


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_of_several_trainings_can_be_read_and_evaluated(name: str, whole: Callable[[str], Any]) -> None:
    folder, fit, _ = whole(name)
    other = runs.load(folder)
    other.inputs = fit.inputs
    assert other.ways == fit.ways == (*WAYS, "moments", *(["distilled"] if name == "distilled" else []))
    data = runs.data_of(folder)
    for how in fit.ways:
        assert torch.equal(other.predict(data.test.x, how), fit.predict(data.test.x, how))
    assert set(evaluation.evaluate(other, data)["predict"]) == set(fit.ways)

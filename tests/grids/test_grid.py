"""A grid file as runs and cells: what is shared, what tells two runs apart, and one sentence for what makes no sense."""

from __future__ import annotations

import inspect
import os
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from espalier.grids import grid as grids
from espalier.grids.grid import Grid, expand
from espalier.runs.recipes import resolve
from espalier.training.options import Training
from places import ROOT

GRIDS = sorted((ROOT / "examples" / "grids").glob("*.yaml"))
RIGL = {"run": {"inference": "rigl"}, "predict": "unmasked"}


def grid(methods: dict[str, Any] | None = None, **written: Any) -> Grid:
    """A grid of `mlp` on digits; whatever is given replaces a line of it."""
    lines = {"base": {"model": "mlp", "data": "digits"}, "sparsities": [0.5], "methods": methods or {"RigL": RIGL}}
    return expand(lines | written)


def cigl(**own: Any) -> dict[str, Any]:
    return {"run": {"inference": "cigl", **own}, "predict": "ticket"}


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.name)
def test_every_grid_of_the_examples_is_one(path: Path) -> None:
    found = grids.read(path)
    assert len(found.cells) >= len(found.methods)
    assert {name for cell in found.cells for name in cell.runs} == set(found.runs)


@pytest.mark.parametrize(("name", "inputs"), [("fashion-mlp", 784), ("sparse-methods", 64)])
def test_small_dense_nets_have_as_many_weights_as_the_sparse_ones(name: str, inputs: int) -> None:
    found = grids.read(GRIDS[0].parent / f"{name}.yaml")

    def weights(hidden: tuple[int, ...]) -> int:
        return sum(n * m for n, m in pairwise((inputs, *hidden, 10)))

    small = {c.sparsity: found.runs[c.runs[0]].options["hidden"] for c in found.cells if c.method.lower() == "small dense"}
    (big,) = {found.runs[c.runs[0]].options["hidden"] for c in found.cells if c.method.lower() == "dense"}
    assert set(small) == {c.sparsity for c in found.cells} - {0.0}
    for sparsity, hidden in small.items():
        assert weights(hidden) == pytest.approx((1 - sparsity) * weights(big), rel=0.015)


def test_the_grid_of_the_docstring_is_one() -> None:
    doc = inspect.getdoc(grids) or ""
    block = doc[doc.index("    base:") : doc.index("Later options win")]
    found = expand(yaml.safe_load(textwrap.dedent(block)))
    assert found.methods == ("RigL", "RigL + TS", "CigL", "Ensemble", "DRO", "Two halves", "Dense")
    assert len(found.cells) == 2 * 3 * (6 * 2 + 1)
    assert found.outside == "mnist"
    assert found.runs[found.cells[0].runs[0]].inference == "dense"


def test_a_run_is_the_recipe_of_its_words() -> None:
    found = grid({"CigL": cigl(drop_rate=0.2, rescale=True, hidden=[32, 16], train_size=None)}, seeds=[4])
    words = ["--model=mlp", "--data=digits", "--inference=cigl", "--drop-rate=0.2", "--rescale", "--hidden=32,16"]
    assert list(found.runs.values()) == [resolve([*words, "--sparsity=0.5", "--seed=4"])]


def test_methods_that_train_alike_share_their_runs() -> None:
    methods = {
        "RigL": RIGL,
        "RigL + TS": {**RIGL, "calibrate": "temperature"},
        "W-DP": {**cigl(drop_rate=0.2), "predict": "unmasked"},
        "MC-DP": {**cigl(drop_rate=0.2), "predict": "redraw"},
    }
    found = grid(methods, sparsities=[0.5, 0.9], seeds=[0, 1, 2])
    assert len(found.cells) == 4 * 2 * 3
    assert len(found.runs) == 2 * 2 * 3
    assert len({cell.name for cell in found.cells}) == len(found.cells)


def test_an_ensemble_has_the_run_of_its_seed_and_members_that_no_other_seed_has() -> None:
    found = grid({"RigL": RIGL, "Ensemble": {**RIGL, "members": 3}}, seeds=list(range(20)))
    single = {cell.seed: cell.runs for cell in found.cells if cell.method == "RigL"}
    ensembles = {cell.seed: cell.runs for cell in found.cells if cell.method == "Ensemble"}
    assert all(len(runs) == 3 and runs[:1] == single[seed] for seed, runs in ensembles.items())
    assert len({run for runs in ensembles.values() for run in runs}) == 60 == len(found.runs)


def test_members_may_have_as_many_weights_in_total_as_one_network() -> None:
    split = {**RIGL, "members": [{"loss": "dro:10"}, {}], "weights": "total"}
    found = grid({"RigL": RIGL, "Split": split}, sparsities=[0.5, 0.9])
    whole = {(cell.method, cell.sparsity): [found.runs[name].options["sparsity"] for name in cell.runs] for cell in found.cells}
    assert whole == {("RigL", 0.5): [0.5], ("RigL", 0.9): [0.9], ("Split", 0.5): [0.75] * 2, ("Split", 0.9): [0.95] * 2}
    per_sparsity = {**cigl(drop_rate={0.5: 0.3, 0.9: 0.2}), "members": 2, "weights": "total"}
    found = grid({"CigL": per_sparsity}, sparsities=[0.5, 0.9])
    rates = {cell.sparsity: found.runs[cell.runs[0]].options["drop_rate"] for cell in found.cells}
    assert rates == {0.5: 0.3, 0.9: 0.2}  # options are of the cell's sparsity, not the member's


def test_an_option_may_be_given_per_sparsity_and_per_name_of_an_axis() -> None:
    over = {"regime": {"long": {"epochs": 60}, "short": {"epochs": 5}}, "net": {"small": {"hidden": [8]}, "wide": {}}}
    rates = {"long": {0.5: 0.3, 0.9: 0.2}, "short": 0.05}
    found = grid({"CigL": cigl(drop_rate=rates)}, over=over, sparsities=[0.5, 0.9])
    seen = {
        (cell.variant, cell.sparsity): tuple(
            found.runs[cell.runs[0]].options[name] for name in ("epochs", "hidden", "drop_rate", "sparsity")
        )
        for cell in found.cells
    }
    assert found.axes == ("regime", "net")
    assert seen[("long", "small"), 0.5] == (60, (8,), 0.3, 0.5)
    assert seen[("long", "wide"), 0.9] == (60, (512, 512), 0.2, 0.9)
    assert seen[("short", "small"), 0.9] == (5, (8,), 0.05, 0.9)
    assert len(seen) == 8


def test_later_options_win_base_axis_method() -> None:
    over = {"regime": {"a": {"epochs": 2, "batch_size": 20}}}
    base = {"model": "mlp", "data": "digits", "epochs": 1, "batch_size": 10, "learning_rate": 0.5}
    (recipe,) = grid({"M": cigl(**{"batch-size": 30})}, base=base, over=over).runs.values()
    assert [recipe.options[name] for name in ("epochs", "batch_size", "learning_rate")] == [2, 30, 0.5]


def test_a_dense_net_stands_at_its_own_sparsity_or_has_a_size_for_each() -> None:
    own = {"run": {"inference": "dense"}, "sparsities": [0]}
    small = {"run": {"inference": "dense", "hidden": {0.5: [100], 0.9: [20]}}}
    found = grid({"RigL": RIGL, "Dense": own, "Small": small}, sparsities=[0.5, 0.9])
    assert {(c.method, c.sparsity) for c in found.cells} >= {("Dense", 0.0), ("Small", 0.5), ("Small", 0.9)}
    assert len(found.cells) == 5
    assert [found.runs[c.runs[0]].options["hidden"] for c in found.cells if c.method == "Small"] == [(100,), (20,)]
    each = {"run": {"inference": "dense", "hidden": {"a": {0.5: [16], 0.9: [8]}, "b": {0.5: [32], 0.9: [4]}}}}  # also in an axis
    found = grid({"Small": each}, over={"net": {"a": {}, "b": {}}}, sparsities=[0.5, 0.9])
    widths = {(c.variant[0], c.sparsity): found.runs[c.runs[0]].options["hidden"] for c in found.cells}
    assert widths == {("a", 0.5): (16,), ("a", 0.9): (8,), ("b", 0.5): (32,), ("b", 0.9): (4,)}


def test_a_runs_name_depends_on_its_options_and_its_files_but_not_on_where_they_lie(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text((ROOT / "models" / "mlp.py").read_text())
    methods: dict[str, Any] = {"RigL": RIGL}

    def name(folder: Path, **base: Any) -> str:
        lines = {"base": {"model": "mine.py", "data": "digits", **base}, "sparsities": [0.5], "methods": methods}
        found = expand(lines, folder)
        (recipe,) = found.runs.values()
        assert Path(recipe.model).is_absolute()
        return next(iter(found.runs))

    first = name(tmp_path)
    assert first.startswith("rigl-mine-digits-0.5-s0-")
    assert name(tmp_path, data_dir=str(tmp_path)) == first
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_bytes(mine.read_bytes())
    assert name(tmp_path / "other") == first
    assert name(tmp_path, epochs=3) != first
    assert name(tmp_path, epochs=Training().epochs) == first
    mine.write_text(mine.read_text() + "\n# changed\n")
    assert name(tmp_path) != first


def test_a_folder_of_images_counts_by_names_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    (tmp_path / "pictures" / "cat" / "0.png").write_bytes(b"one")

    def digest(data: str) -> str:
        lines = {"base": {"model": "mlp", "data": data}, "sparsities": [0.5], "methods": {"RigL": RIGL}}
        return next(iter(expand(lines, tmp_path).runs)).split("-")[-1]

    first = digest("pictures")
    (tmp_path / "pictures").rename(tmp_path / "moved")
    assert digest("moved") == first
    (tmp_path / "moved" / ".DS_Store").write_bytes(b"of no image")
    assert digest("moved") == first
    (tmp_path / "moved" / "cat" / "0.png").write_bytes(b"another")
    assert digest("moved") != first


def test_a_cells_name_depends_on_what_its_scores_depend_on() -> None:
    (first,) = grid().cells
    changes: list[dict[str, Any]] = [
        {"num_samples": 8}, {"split": "calibration"}, {"methods": {"RigL": {**RIGL, "predict": "ticket"}}},
        {"methods": {"RigL": {**RIGL, "calibrate": "temperature"}}}, {"seeds": [1]},
        {"base": {"model": "mlp", "data": "digits", "epochs": 9}},
    ]  # fmt: skip
    names = {first.name, *(grid(**change).cells[0].name for change in changes)}
    assert len(names) == 1 + len(changes)
    assert grid(baseline="RigL").cells == (first,)
    assert grid(baseline=["RigL"]).baselines == ("RigL",)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown line": ({"methds": {}}, r"expected a line of base, .* in the grid, got 'methds': did you mean 'methods'\?"),
    "unknown key of a method": ({"methods": {"A": {"member": 2}}}, "in method 'A', got 'member': did you mean 'members'"),
    "no method": ({"methods": [RIGL]}, "expected methods to hold lines"),
    "unknown way": ({"methods": {"A": {**RIGL, "predict": "tickets"}}}, "'A': expected predict of ticket, .*'tickets'"),
    "unknown calibrator": ({"methods": {"A": {**RIGL, "calibrate": "temp"}}}, "expected calibrate of temperature, .*'temp'"),
    "one member": ({"methods": {"A": {**RIGL, "members": 1}}}, "expected members from 2 to 100, got 1"),
    "a total of one network": ({"methods": {"A": {**RIGL, "weights": "total"}}}, "expected weights each or total, of several"),
    "unknown option": (
        {"methods": {"A": cigl(drop_rat=0.1)}},
        r"^method 'A' at sparsity 0.5: expected an option of this recipe, got --drop-rat: did you mean 'drop_rate'\?$",
    ),
    "option of another inference": ({"methods": {"A": {"run": {"inference": "rigl", "drop_rate": 0.1}}}}, "got --drop-rate"),
    "value out of type": ({"methods": {"A": cigl(epochs="many")}}, "--epochs"),
    "value out of range": ({"methods": {"A": cigl(epochs=0)}}, "expected epochs of at least 1 and at most 1,000,000, got 0"),
    "unknown inference": ({"methods": {"A": {"run": {"inference": "ridge"}}}}, "expected an inference of .*'ridge'"),
    "no inference": ({"methods": {"A": {}}}, "expected a model, an inference and data"),
    "no entry for a sparsity": ({"methods": {"A": cigl(drop_rate={0.9: 0.1})}}, "'drop_rate' to have one value here.*0.9"),
    "seed as an option": ({"methods": {"A": cigl(seed=3)}}, "expected no option 'seed' in a run"),
    "sparsity of a dense net": (
        {"methods": {"A": {"run": {"inference": "dense"}}}},
        r"dense has no option sparsity: give the method `sparsities: \[0\]`",
    ),
    "draws of one network": (
        {"methods": {"A": {**cigl(drop_rate=0), "predict": "redraw"}}},
        "expected a drop_rate above 0 for predict redraw",
    ),
    "pairs of one network": (
        {"methods": {"A": {**cigl(drop_rate=0, average_from=1.0), "predict": "pairs"}}},
        "expected several pairs",
    ),
    "temperature without validation": (
        {"methods": {"A": {**cigl(validation=0), "calibrate": "temperature"}}},
        "expected a validation split to fit the temperature on, got validation 0",
    ),
    "temperature scored where it was fitted": (
        {"methods": {"A": {**RIGL, "calibrate": "temperature"}}, "split": "validation"},
        "expected cells scored where no temperature was fitted",
    ),
    "no examples to score": ({"split": "calibration", "methods": {"A": cigl(calibration=0)}}, "expected a calibration split"),
    "unknown split": ({"split": "train"}, "expected a split of validation, calibration, test"),
    "unknown baseline": ({"baseline": "RigLL"}, r"expected a baseline of RigL, got 'RigLL': did you mean 'RigL'\?"),
    "sparsity of one": ({"sparsities": [1]}, r"expected sparsities as a list of different fractions in \[0, 1\), got \[1\]"),
    "no sparsities": ({"sparsities": None}, "expected sparsities as a list"),
    "seeds twice": ({"seeds": [0, 0]}, r"expected seeds as a list of different whole numbers from 0 to .*, got \[0, 0\]"),
    "names twice": ({"over": {"a": {"x": {}}, "b": {"x": {}}}}, "expected names of variants that differ, got x, x"),
    "an axis called as a fact": ({"over": {"num_weights": {"x": {}}}}, "expected another name for the axis 'num_weights'"),
    "an axis called baseline": ({"over": {"baseline": {"x": {}}}}, "expected another name for the axis 'baseline'"),
    "an axis called seed": ({"over": {"seed": {"x": {}}}}, "expected another name for the axis 'seed'"),
    "no fresh masks": ({"num_samples": 0}, "expected num_samples from 1 to 10,000, got 0"),
    "too many fresh masks": ({"num_samples": 10**9}, "expected num_samples from 1 to 10,000"),
    "too many members": ({"methods": {"A": {**RIGL, "members": 10**8}}}, "expected members from 2 to 100"),
    "too many cells": (
        {"over": {f"axis{i}": {f"{i}.{j}": {} for j in range(10)} for i in range(9)}},
        "expected a grid of at most 10,000 networks, got 1,000,000,000: cut it",
    ),
    "a seed too large": ({"seeds": [2**63]}, "expected seeds as a list of different whole numbers from 0 to"),
    "a true sparsity": ({"sparsities": [False]}, "expected sparsities as a list"),
    "an axis without names": ({"over": {"x": {}}}, "expected x to hold lines of `name: ...`, got none"),
    "a method of number": ({"methods": {5: RIGL, "5": RIGL}}, "expected words for the names in methods, got 5: put it in quotes"),
    "an option of number": ({"base": {"model": "mlp", "data": "digits", 5: 3}}, "expected words for the names in base, got 5"),
    "an option of no name": ({"methods": {"A": cigl() | {None: 1}}}, "expected words for the names in method 'A', got None"),
    "an option twice": ({"methods": {"A": cigl(**{"drop-rate": 0.1, "drop_rate": 0.2})}}, "every option once in run of .*'A'"),
    "an option twice in a variant": ({"over": {"x": {"a": {"delta-t": 1, "delta_t": 2}}}}, "every option once in x: a"),
    "a list as calibrator": ({"methods": {"A": {**RIGL, "calibrate": []}}}, r"expected calibrate of temperature, .*, got \[\]"),
    "a list of no baselines": ({"baseline": []}, r"expected a baseline, or a list of different ones, got \[\]"),
    "a baseline twice": ({"baseline": ["RigL", "RigL"]}, "expected a baseline, or a list of different ones"),
    "a baseline of lists": ({"baseline": [[]]}, r"expected a baseline of RigL, got \[\]"),
    "distilled of what is not": (
        {"methods": {"A": {**RIGL, "predict": "distilled"}}},
        "expected inference distilled for predict distilled, got rigl",
    ),
    "no weights to start from": ({"methods": {"A": cigl(init="nowhere.safetensors")}}, "nowhere.safetensors is not there"),
    "lines for a value": ({"methods": {"A": cigl(hidden=[{"a": 1}])}}, "--hidden: expected a whole number"),
    "not a number": ({"methods": {"A": cigl(drop_rate=float("nan"))}}, "--drop-rate: expected a number or auto .*, got 'NaN'"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_makes_no_sense_is_refused_in_a_sentence(what: str) -> None:
    written, sentence = REFUSED[what]
    with pytest.raises(ValueError, match=sentence) as error:
        grid(**written)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a grid file, but .* is not there"):
        grids.read(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_text("base: [")
    with pytest.raises(ValueError, match="to be YAML"):
        grids.read(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("{sparsities: [0.5], methods: {}}")
    with pytest.raises(ValueError, match="expected methods to hold lines of `name: ...`, got none"):
        grids.read(tmp_path / "b.yaml")
    (tmp_path / "b.yaml").write_text("just words")
    with pytest.raises(ValueError, match="to hold lines of `name: ...`, got 'just words'"):
        grids.read(tmp_path / "b.yaml")


def test_labels_of_a_file_count_by_content(tmp_path: Path) -> None:
    file = tmp_path / "noisy.npz"
    names = []
    for label in (0, 1, 0):
        np.savez(file, y=np.full(4, label))
        names.append(*grid(base={"model": "mlp", "data": "digits", "label_noise": f"{file}:y"}).runs)
        os.utime(file, ns=(len(names), len(names)))
    assert names[0] == names[2] != names[1]
    found = expand({"base": {"model": "mlp", "data": "digits", "label_noise": "noisy.npz:y"}, "sparsities": [0.5],
                    "methods": {"RigL": RIGL}}, folder=tmp_path)  # fmt: skip
    (recipe,) = found.runs.values()
    assert recipe.options["label_noise"] == f"{file.resolve()}:y"

"""`espalier compare`: cells are what their runs predict, nothing is done twice, nothing sinks the rest, all ways agree."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from espalier import calibration, runs
from espalier.calibration import calibrators, comparison
from espalier.grids import cells, checks, compare, report
from espalier.grids.grid import Cell, Grid, expand, read
from espalier.prediction.evaluation import predictions
from lines import CIGL, LINES, RIGL, InThisProcess, write


def tables(grid: Grid, outcome: compare.Outcome) -> tuple[bytes, bytes]:
    """Both tables as CSV, without what a clock said."""
    rows = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in report.cell_rows(grid, outcome)]
    return report.csv_of(rows), report.csv_of(report.difference_rows(grid, outcome))


# --- What a cell is -----------------------------------------------------------------------------------------------
def test_a_cell_is_what_its_runs_predict(done: tuple[Grid, Path, compare.Outcome]) -> None:
    grid, out, outcome = done
    for cell in grid.cells[::2]:
        assert cell.seed == 0
        data = runs.data_of(out / "runs" / cell.runs[0])
        y = data.test.y.numpy()
        each = [
            {
                part: predictions(runs.load(out / "runs" / name), data, part, ways=[cell.predict], num_samples=4)
                for part in ("train", "validation", "test")
            }
            for name in cell.runs
        ]
        p = {part: np.mean([one[part][cell.predict] for one in each], axis=0) for part in each[0]}
        found = outcome.cells[cell.name]
        if cell.calibrate:
            t = calibrators.fit_temperature(p["validation"], data.validation.y.numpy())
            assert found["facts"]["temperature"] == pytest.approx(t, rel=1e-9)
            p = {part: calibrators.apply_temperature(q, t) for part, q in p.items()}
        scores = found["scores"]
        expected = calibration.classification_summary(p["test"], y)
        for name, value in expected.items():  # members are averaged one after the other
            np.testing.assert_allclose(scores[name], value, rtol=1e-9, err_msg=name)
        assert scores["ece_15_debiased"] == pytest.approx(comparison.ece_debiased(p["test"], y), rel=1e-9)
        assert found["train_accuracy"] == calibration.accuracy(p["train"], data.train.y.numpy())
        assert found["train_nll"] == pytest.approx(calibration.nll(p["train"], data.train.y.numpy()), rel=1e-9)
        with np.load(out / "cells" / f"{cell.name}.npz", allow_pickle=False) as arrays:
            np.testing.assert_allclose(arrays["nll"], calibration.nll_scores(p["test"], y), rtol=1e-9)
            assert arrays["hit"].mean() == expected["accuracy"]


def test_the_rows_of_a_grid_are_read_once_and_others_anew(
    done: tuple[Grid, Path, compare.Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, out, _ = done
    read_from, real = list[Path](), runs.data_of
    monkeypatch.setattr(cells, "_READ", {})
    monkeypatch.setattr(cells.runs, "data_of", lambda folder: (read_from.append(folder), real(folder))[1])
    folders = [out / "runs" / name for name in grid.runs]
    fits = [runs.load(folder) for folder in folders]
    kept = [cells._data_of(folder, fit) for folder, fit in zip(folders, fits, strict=True)]
    assert len(read_from) == len({runs.recipe_in(folder).options["train_size"] for folder in folders})
    assert all(data.hashes == fit.record["data"]["hashes"] for data, fit in zip(kept, fits, strict=True))
    fits[0].record["data"]["hashes"] = {**kept[0].hashes, "test": "others"}
    cells._data_of(folders[0], fits[0])
    assert len(cells._READ) == 1
    assert read_from[-1] == folders[0]


@pytest.mark.parametrize("name", ["vector", "beta"])
def test_a_calibrator_of_many_numbers_is_kept_in_the_record_and_is_no_column(
    name: str, done: tuple[Grid, Path, compare.Outcome]
) -> None:
    grid, out, _ = done
    cell = grid.cells[0]._replace(calibrate=name, name=f"{name}-of-many")
    cells.score(out, 4, "test", None, cell)
    found = json.loads((out / "cells" / f"{cell.name}.json").read_text())
    data = runs.data_of(out / "runs" / cell.runs[0])
    fit = runs.load(out / "runs" / cell.runs[0])
    p = {part: predictions(fit, data, part, ways=[cell.predict])[cell.predict] for part in ("validation", "test")}
    calibrator = calibrators.CALIBRATORS[name]
    after = calibrator.apply(p["test"], calibrator.fit(p["validation"], data.validation.y.numpy()))
    assert found["scores"]["nll"] == calibration.nll(after, data.test.y.numpy())
    np.testing.assert_array_equal(calibrator.apply(p["test"], found["fitted"][name]), after)
    assert name not in found["facts"]


def test_differences_are_paired_by_seed_and_example(done: tuple[Grid, Path, compare.Outcome]) -> None:
    grid, out, outcome = done
    assert len(outcome.differences) == 5
    named = {(c.method, c.sparsity, c.seed): c.name for c in grid.cells}

    def scores(method: str) -> comparison.Scores:
        files = [np.load(out / "cells" / f"{named[method, 0.8, seed]}.npz", allow_pickle=False) for seed in (0, 1)]
        return comparison.Scores(*(np.stack([file[field] for file in files]) for field in comparison.Scores._fields))

    seeds, found = outcome.differences["CigL", "RigL", (), 0.8]
    assert seeds == (0, 1)
    together = comparison.differences(scores("CigL"), scores("RigL"))  # the grid sums each seed for itself, in float32
    for name, own in together.items():
        assert found[name].mean == pytest.approx(own.mean, rel=1e-12)
        assert found[name].crossed == pytest.approx(own.crossed, abs=1e-6)
        assert found[name].verdict == own.verdict
    rows = [r for r in report.difference_rows(grid, outcome) if (r["method"], r["sparsity"]) == ("CigL", 0.8)]
    assert [r["score"] for r in rows] == ["accuracy", "nll", "brier", "ece_15"]
    nll = {(r["method"], r["seed"]): r["nll"] for r in report.cell_rows(grid, outcome)}
    expected = np.mean([nll["CigL", seed] - nll["RigL", seed] for seed in (0, 1)])
    assert rows[1]["difference"] == pytest.approx(expected, rel=1e-12)


def test_a_list_of_baselines_and_costs_beside_the_dense_net_of_the_grid(tmp_path: Path) -> None:
    methods = {
        "RigL": RIGL,
        "MC-DP": {"run": CIGL, "predict": "redraw"},
        "Small": {"run": {"inference": "dense", "hidden": {0.8: [3]}}, "predict": "unmasked"},
        "Dense": {"run": {"inference": "dense"}, "predict": "unmasked", "sparsities": [0]},
        "Small dense": {"run": {"inference": "dense", "hidden": [4]}, "predict": "unmasked", "sparsities": [0]},
    }
    base = {name: value for name, value in LINES["base"].items() if name != "delta_t"}
    methods["RigL"] = {**RIGL, "run": {**RIGL["run"], "delta_t": 4}}
    grid = read(write(tmp_path / "lines.yaml", base=base, methods=methods, baseline=["RigL", "MC-DP"]))
    assert grid.baselines == ("RigL", "MC-DP")
    outcome = compare.compare(grid, tmp_path / "out", InThisProcess())
    assert outcome.failures == {}
    assert [(pair.method, pair.baseline) for pair in outcome.differences] == [
        ("RigL", "MC-DP"), ("MC-DP", "RigL"), ("Small", "RigL"), ("Small", "MC-DP"),
    ]  # fmt: skip
    ours, theirs = (outcome.differences[pair][1] for pair in list(outcome.differences)[:2])
    assert {name: found.mean for name, found in ours.items()} == {name: -found.mean for name, found in theirs.items()}
    assert ours["nll"].crossed == pytest.approx([-end for end in reversed(theirs["nll"].crossed)])
    page = report.summary(grid, outcome)
    assert "Minus RigL:" in page
    assert "## Won / tied / lost against MC-DP" in page
    rows = {(r["method"], r["seed"]): r for r in report.cell_rows(grid, outcome)}
    times = [rows["Dense", seed]["seconds_per_step"] for seed in (0, 1)]
    for (method, _), row in rows.items():
        assert row["seconds_per_step_relative"] == pytest.approx(row["seconds_per_step"] / np.mean(times)), method
    assert np.mean([rows["Dense", seed]["seconds_per_step_relative"] for seed in (0, 1)]) == pytest.approx(1)
    small, rigl = rows["Small", 0], rows["RigL", 0]
    assert small["inference_flops_relative"] == pytest.approx(74 * 3 / (74 * 16))  # over the big net, not over itself
    assert small["state_bytes_relative"] < 0.4
    assert rigl["train_flops_relative"] == pytest.approx(
        next(outcome.cells[c.name]["facts"] for c in grid.cells if c.method == "RigL")["train_flops_relative"]
    )
    assert "inference FLOPs ÷ dense" in page
    beside = compare.gather(grid._replace(baselines=("Dense",)), tmp_path / "out")
    assert {(pair.method, pair.sparsity) for pair in beside.differences} == {
        ("RigL", 0.8), ("MC-DP", 0.8), ("Small", 0.8), ("Small dense", 0.0),
    }  # fmt: skip
    means = [np.mean([row["nll"] for (method, _), row in rows.items() if method == own]) for own in ("RigL", "Dense")]
    assert beside.differences["RigL", "Dense", (), 0.8][1]["nll"].mean == pytest.approx(means[0] - means[1])


def test_draws_that_are_one_network_are_refused_once_there_is_a_fit(tmp_path: Path) -> None:
    methods = {"RigL": RIGL, "RigL + MC": {**RIGL, "predict": "redraw"}}
    grid = expand(LINES | {"methods": methods, "sparsities": [0.5], "seeds": [0]})
    outcome = compare.compare(grid, tmp_path, InThisProcess())
    assert list(outcome.failures.values()) == [
        "expected draws that differ for predict redraw, but this fit is one network: `unmasked`"
    ]


def test_methods_on_other_test_rows_are_refused_before_any_work(tmp_path: Path) -> None:
    methods = {"RigL": RIGL, "Other": {**RIGL, "run": {**RIGL["run"], "split_seed": 1}}}
    hands = InThisProcess()
    with pytest.raises(ValueError, match="expected all methods scored on the same test rows, but those of Other are not"):
        compare.compare(expand(LINES | {"methods": methods}), tmp_path, hands)
    assert hands.did == []


def test_a_dense_baseline_on_other_test_rows_is_refused_before_any_work(tmp_path: Path) -> None:
    dense = {"run": {"inference": "dense", "split_seed": 1}, "predict": "unmasked", "sparsities": [0]}
    base = {name: value for name, value in LINES["base"].items() if name != "delta_t"}
    grid = expand(LINES | {"base": base, "methods": {"RigL": RIGL, "Dense": dense}, "baseline": "Dense"})
    with pytest.raises(ValueError, match="expected all methods scored on the same test rows"):
        compare.compare(grid, tmp_path, InThisProcess())


# --- Nothing is done twice, and nothing sinks the rest ------------------------------------------------------------
def test_what_is_finished_is_not_done_again(done: tuple[Grid, Path, compare.Outcome]) -> None:
    grid, out, outcome = done
    hands = InThisProcess()
    again = compare.compare(grid, out, hands)
    assert hands.did == []
    assert tables(grid, again) == tables(grid, outcome)
    wider = expand(LINES | {"methods": {**LINES["methods"], "Mean": {"run": CIGL, "predict": "mean"}}})
    assert compare.plan(wider, out).runs == {}
    assert {cell.method for cell in compare.plan(wider, out).cells} == {"Mean"}


class Stopped(InThisProcess):
    """Workers that are stopped before they train their third run."""

    def __call__(self, task, items):  # type: ignore[no-untyped-def]
        for item, failure in super().__call__(task, items):
            yield item, failure
            if items and not isinstance(items[0], Cell) and sum(not isinstance(done, Cell) for done in self.did) == 2:
                raise KeyboardInterrupt


def test_a_cell_is_scored_as_soon_as_its_runs_are_there_and_a_stop_leaves_it(
    done: tuple[Grid, Path, compare.Outcome], tmp_path: Path
) -> None:
    grid, _, whole = done
    hands = Stopped()
    with pytest.raises(KeyboardInterrupt):
        compare.compare(grid, tmp_path, hands)
    trained = {item[0] for item in hands.did if not isinstance(item, Cell)}
    due = {cell.name for cell in grid.cells if trained.issuperset(cell.runs)}
    assert len(trained) == 2
    assert due
    assert {path.stem for path in (tmp_path / "cells").glob("*.json")} == due
    assert tables(grid, compare.compare(grid, tmp_path, InThisProcess())) == tables(grid, whole)


def copied(grid: Grid, out: Path, tmp_path: Path) -> tuple[str, Path]:
    """The first run of a grid in another folder: its name, and where it is."""
    name = next(iter(grid.runs))
    return name, shutil.copytree(out / "runs" / name, tmp_path / "runs" / name)


def test_a_run_of_another_default_is_refused_and_one_of_fewer_options_is_not(
    done: tuple[Grid, Path, compare.Outcome], tmp_path: Path
) -> None:
    grid, out, outcome = done
    name, copy = copied(grid, out, tmp_path)
    checks.check_runs(grid, tmp_path)
    config = copy / "config.yaml"
    written = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in written if not line.startswith("momentum:")))  # before there was such an option
    checks.check_runs(grid, tmp_path)
    config.write_text("".join("momentum: 0.5\n" if line.startswith("momentum:") else line for line in written))
    with pytest.raises(ValueError, match=f"expected momentum 0.9 in run {name}, .* with 0.5, the default before: choose another"):
        compare.compare(grid, tmp_path, InThisProcess())


def test_a_run_that_is_there_with_another_program_is_not_run(
    done: tuple[Grid, Path, compare.Outcome], tmp_path: Path
) -> None:
    """A grid's own programs were looked at; what a folder brings along was not."""
    grid, out, _ = done
    name, copy = copied(grid, out, tmp_path)
    (copy / "model.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom espalier.models.mlp import model\n")
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("model: mlp", "model: model.py"))
    with pytest.raises(ValueError, match=rf"expected model mlp in run {name}, .* with another program model\.py: choose another"):
        compare.compare(grid, tmp_path, InThisProcess())
    assert not (tmp_path / "ran").exists()


def test_the_meter_counts_through_kills_and_several_trainings(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    for _ in range(2):
        meter = compare.Meter(path)
        for row in ({"epoch": 1, "step": 3}, {"epoch": 2, "step": 6}):
            for _ in range(3):
                meter.on_step(None)
            time.sleep(0.01)
            meter.on_epoch(row)
        meter.on_step(None)  # of an epoch that is never over
    found = json.loads(path.read_text())
    assert (found["epoch"], found["step"]) == (4, 12)
    assert 0.04 <= found["seconds"] < 1


def test_an_altered_cell_is_refused(done: tuple[Grid, Path, compare.Outcome]) -> None:
    grid, out, _ = done
    path = out / "cells" / f"{grid.cells[0].name}.json"
    whole = path.read_text()
    path.write_text(whole.replace('"accuracy": 0.', '"accuracy": 1.', 1))
    with pytest.raises(ValueError, match="altered"):
        compare.gather(grid, out)
    path.write_text(whole)
    arrays = path.with_name(f"{grid.cells[0].name}.npz")
    kept = arrays.read_bytes()
    arrays.write_bytes(kept[:-1] + b"x")
    with pytest.raises(ValueError, match="SHA-256 differs"):
        compare.gather(grid, out)
    arrays.write_bytes(kept)

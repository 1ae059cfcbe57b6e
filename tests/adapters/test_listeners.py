"""What listens to a training writes down what the history says, to the last digit, once, through kills and phases."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytorch_lightning.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from commands import fit, spoken
from digits import digits, mlp
from espalier import runs, shelf
from espalier.adapters.listeners import Csv, Metrics, TensorBoard, log_to, numbers
from espalier.cli.main import main
from espalier.prediction.fit import Fit
from espalier.training.options import Training
from espalier.training.watch import Checkpoints, Watches
from watches import Killed

EPOCHS, PER_EPOCH = 6, 10
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def trained(watch: Watches, inference: str = "cigl", **options: Any) -> Fit:
    training = Training(epochs=EPOCHS, batch_size=32, learning_rate=0.1, device="cpu")
    settings = {"sparsity": 0.7, "drop_rate": 0.2, "average_from": 0.5, **options}
    settings |= {} if inference == "lottery" else {"delta_t": 7, "freeze": 0.5}
    return shelf.load("inference", inference)(mlp(), digits(), training=training, seed=1, watch=watch, **settings)


def rows_of(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return [{name: json.loads(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


# ----------------------------------------------------------------------------------------------------------------- CSV


def test_a_csv_file_is_the_history_to_the_last_digit(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history.csv"
    fitted = trained(Csv(path))
    assert rows_of(path) == fitted.history


@pytest.mark.parametrize("kill", [15, 35])
def test_a_csv_file_goes_on_after_a_kill_and_holds_no_row_twice(kill: int, tmp_path: Path) -> None:
    """Epochs that were logged but not kept in a checkpoint are trained, and logged, again."""
    path, kept = tmp_path / "history.csv", tmp_path / "mine.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(Checkpoints(kept, [Csv(path), Killed(step=kill)], every=0))
    assert len(rows_of(path)) == kill // PER_EPOCH
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")  # as if one more had been lost
    assert rows_of(path) != trained(Checkpoints(kept, Csv(path), every=0)).history[:2]
    assert rows_of(path) == trained(None).history


def test_a_csv_file_has_the_rows_of_every_phase(tmp_path: Path) -> None:
    fitted = trained(Csv(tmp_path / "history.csv"), inference="distilled", distill_epochs=2)
    assert rows_of(tmp_path / "history.csv") == fitted.history
    assert len(fitted.history) == EPOCHS + 2


def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text("name,age\nAda,36\n")
    with pytest.raises(ValueError, match="expected a new file, or the log of this very training, but .*history.csv holds"):
        trained(Csv(path))
    assert path.read_text() == "name,age\nAda,36\n"


# --------------------------------------------------------------------------------------------------------- TensorBoard


def test_tensorboard_reads_the_history_back(tmp_path: Path) -> None:
    fitted = trained(TensorBoard(tmp_path / "events", every=5))
    found = events(tmp_path / "events")
    for name in ("loss", "density", "validation_nll", "validation_ece"):
        expected = [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in fitted.history]
        assert found[f"epoch/{name}"] == expected
    assert [step for step, _ in found["step/loss"]] == list(range(5, EPOCHS * PER_EPOCH + 1, 5))


def test_events_after_a_checkpoint_are_withdrawn_when_it_goes_on(tmp_path: Path) -> None:
    kept, folder = tmp_path / "mine.safetensors", tmp_path / "events"
    with pytest.raises(KeyboardInterrupt):
        trained(Checkpoints(kept, [TensorBoard(folder, every=1), Killed(step=25)], every=0))
    fitted = trained(Checkpoints(kept, TensorBoard(folder, every=1), every=0))
    found = events(folder)
    assert [step for step, _ in found["step/loss"]] == list(range(1, EPOCHS * PER_EPOCH + 1))
    assert [step for step, _ in found["epoch/loss"]] == [row["step"] for row in fitted.history]


def test_a_writer_of_one_s_own_is_taken_and_phases_follow_one_another(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "mine")) as writer:
        trained(TensorBoard(writer), inference="lottery", rounds=1)  # two trainings
    steps = [step for step, _ in events(tmp_path / "mine")["epoch/loss"]]
    assert steps == list(range(PER_EPOCH, 2 * EPOCHS * PER_EPOCH + 1, PER_EPOCH))


# -------------------------------------------------------------------------------------------------------------- metrics


def test_a_logger_of_lightning_is_told_every_epoch(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    fitted = trained(Metrics(logger.log_metrics))
    logger.save()
    found = rows_of(tmp_path / "metrics.csv")
    assert [row["step"] for row in found] == list(range(1, EPOCHS + 1))
    assert [row["validation_nll"] for row in found] == [pytest.approx(row["validation_nll"]) for row in fitted.history]


def test_mlflow_has_every_number_of_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="no MLflow here: pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "tracked").as_uri())
    with mlflow.start_run() as run:
        fitted = trained(Metrics(mlflow.log_metrics))
    for name in ("loss", "validation_nll"):
        found = mlflow.tracking.MlflowClient().get_metric_history(run.info.run_id, name)
        assert [(each.step, each.value) for each in found] == [(row["epoch"], row[name]) for row in fitted.history]


def test_only_what_is_a_finite_number_is_drawn() -> None:
    assert numbers({"a": 1, "b": float("nan"), "c": "word", "d": 0.5, "e": [1]}) == {"a": 1.0, "d": 0.5}


# ------------------------------------------------------------------------------------------------------ the command line


def test_fit_and_resume_log_to_where_they_are_told_and_the_recipe_does_not_know(tmp_path: Path) -> None:
    logs = ["--log", f"csv:{tmp_path / 'a.csv'}", "--log", f"tensorboard:{tmp_path / 'events'}"]
    assert fit(tmp_path / "run", *logs) == 0
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert rows_of(tmp_path / "a.csv") == history
    assert len(events(tmp_path / "events")["epoch/loss"]) == len(history) == 2
    assert "log" not in yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    with pytest.raises(KeyboardInterrupt):
        runs.start(runs.recipe_in(tmp_path / "run"), tmp_path / "half", Killed(step=4), every=0)
    assert main(["resume", str(tmp_path / "half"), "--log", f"csv:{tmp_path / 'b.csv'}"]) == 0
    assert rows_of(tmp_path / "b.csv") == history


def test_patience_on_the_command_line_is_in_the_recipe_and_resumes_to_the_same_files(tmp_path: Path) -> None:
    words = ["--patience", "2", "--epochs", "40", "--learning-rate", "0.6", "--rate", "constant"]
    assert fit(tmp_path / "run", *words) == 0
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["recipe"]["patience"] == 2
    assert record["stopped_at"] < 40
    assert record["stopped_by"].startswith("patience 2: validation_nll was lowest")
    with pytest.raises(KeyboardInterrupt):
        runs.start(runs.recipe_in(tmp_path / "run"), tmp_path / "half", Killed(epoch=2), every=0)
    runs.resume(tmp_path / "half")
    for name in ("fit.safetensors", "history.json"):
        assert (tmp_path / "half" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


@pytest.mark.parametrize("place", ["history.csv", "csv:", "wandb:there"])
def test_an_unknown_place_is_a_sentence_before_anything_is_made(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="expected a log of csv:FILE or tensorboard:DIR, got"):
        log_to(place)
    words = ["fit", "--model", "mlp", "--inference", "cigl", "--data", "digits", "--out", str(tmp_path / "run"), "--log", place]
    assert "expected a log of csv:FILE or tensorboard:DIR" in spoken(capsys, words)
    assert not (tmp_path / "run").exists()


def test_without_tensorboard_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"expected TensorBoard to be installed .* pip install 'espalier\[tensorboard\]'"):
        log_to("tensorboard:there")


@pytest.mark.parametrize("name", ["listeners", "tuning"])
def test_a_listener_s_library_is_loaded_when_it_is_used(name: str) -> None:
    code = f"import sys, espalier.adapters.{name}; sys.exit(bool({{'tensorboard', 'optuna'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0

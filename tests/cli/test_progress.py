"""What a person sees while a network trains: bars on a terminal, a few plain lines in a log."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
import torch
from rich.console import Console

from espalier.cli import progress
from espalier.training.loop import Info


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=160), file


def info(step: int, grown: int = 0) -> Info:
    numbers = dict.fromkeys(("loss", "log_likelihood", "kl"), torch.tensor(0.25))
    rest = {"grown": grown, "moved": grown > 0, "active": 10}
    return Info(**{"step": step, **numbers, **{name: rest[name] for name in Info._fields if name in rest}})


def row(epoch: int, **more: float) -> dict[str, Any]:
    return {"epoch": epoch, "step": 5 * epoch, "loss": 1.5, "density": 0.1, **more}


def train(bar: progress.Bar, epochs: int, **more: float) -> None:
    with bar:
        for epoch in range(1, epochs + 1):
            for step in range(5 * epoch - 4, 5 * epoch + 1):
                bar.on_step(info(step, grown=int(step % 5 == 0)))
            bar.on_epoch(row(epoch, **more))


@pytest.mark.parametrize(("epochs", "lines"), [(3, 3), (20, 10), (100, 10), (199, 10)])
def test_a_log_has_ten_to_twenty_lines_whatever_the_epochs(epochs: int, lines: int) -> None:
    out, file = console(terminal=False)
    train(progress.Bar("cigl", epochs, out), epochs)
    found = file.getvalue().splitlines()
    assert lines <= len(found) <= 20
    assert all(line.startswith("cigl  epoch ") for line in found)
    assert found[0].endswith(f"density 0.1000  moves {max(1, epochs // 10)}")


def test_a_line_has_the_loss_and_what_validation_says() -> None:
    out, file = console(terminal=False)
    train(progress.Bar("cigl", 1, out), 1, validation_accuracy=0.9321, validation_ece=0.0456)
    assert file.getvalue().split("moves")[0].split() == (
        ["cigl", "epoch", "1/1", "loss", "1.500", "validation", "accuracy", "0.932", "ECE", "0.046", "density", "0.1000"]
    )
    out, file = console(terminal=False)
    train(progress.Bar("cigl", 1, out), 1, validation_rmse=2.5)
    assert "validation RMSE 2.5  " in file.getvalue()


def test_a_terminal_has_a_bar_and_no_lines_of_a_log() -> None:
    out, file = console(terminal=True)
    bar = progress.Bar("cigl", 4, out)
    train(bar, 4)
    assert bar.progress.tasks[0].completed == 4
    assert bar.progress.tasks[0].finished
    assert "epoch 4/4" in bar.progress.tasks[0].fields["status"]
    assert "100%" in file.getvalue()


def test_within_an_epoch_the_bar_stands_at_its_share_of_the_steps() -> None:
    bar = progress.Bar("cigl", 4, console(terminal=True)[0])
    bar.on_epoch({**row(1), "step": 80})
    for step in range(81, 101):
        bar.on_step(info(step))
    assert bar.progress.tasks[0].completed == pytest.approx(1.25)
    assert "loss 0.250" in bar.progress.tasks[0].fields["status"]


def test_a_grid_in_a_log_says_which_run_has_ended_and_which_has_failed() -> None:
    out, file = console(terminal=False)
    with progress.comparing(2, 10, 3, lambda: 0.0, out) as seen:
        seen("run", "rigl-0", None)
        seen("run", "rigl-1", "RuntimeError: [bold]out of luck")
        seen("cell", "a", None)
        seen("cell", "b", "no fit")
    assert file.getvalue().splitlines() == [
        "run 1/2 rigl-0",
        "run 2/2 rigl-1 failed: RuntimeError: [bold]out of luck",
        "cell 2/3 b failed: no fit",
    ]


def test_the_time_left_is_told_once_there_is_work_to_judge_by(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, done = [100.0], [2.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    out, file = console(terminal=False)
    with progress.comparing(4, 12, 0, lambda: done[0], out) as seen:
        clock[0], done[0] = 700.0, 7.0  # five epochs in ten minutes, five are left
        seen("run", "a", None)
    assert file.getvalue() == "run 1/4 a, about 10 min left\n"


def test_counts_are_silent_in_a_log_and_kept_on_a_terminal() -> None:
    out, file = console(terminal=False)
    with progress.counting("claims", 3, out) as seen:
        seen(3)
    assert file.getvalue() == ""
    out, file = console(terminal=True)
    with progress.counting("claims", 3, out) as seen:
        seen(3)
    assert re.search(r"claims.*3/3", file.getvalue())


def test_every_file_that_is_downloaded_has_a_bar() -> None:
    out, file = console(terminal=True)
    with progress.transfers(out) as seen:
        seen("a.gz", 10, 1000)
        seen("b.gz", 10, None)
        seen("a.gz", 1000, 1000)
    text = file.getvalue()
    assert re.search(r"a\.gz.*1\.0/1\.0 kB", text)
    assert "b.gz" in text

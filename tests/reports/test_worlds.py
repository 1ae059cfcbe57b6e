"""Claims about the runs elsewhere: detection, corruption and checks are those of the functions they name, by run."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from espalier.calibration import accuracy
from espalier.contracts import Data, Split
from espalier.data.worlds import shifted
from espalier.pages import Figure, Table
from espalier.prediction import information, uncertainties
from espalier.reports import worlds
from espalier.reports.look import Look


def test_another_world_is_told_by_every_uncertainty(looks: list[Look]) -> None:
    noise = torch.randn(60, *looks[0].data.shape, generator=torch.Generator().manual_seed(0))
    section = worlds.other_world(looks, "noise", lambda _: noise, 4)
    rows = {row[0]: row for row in next(block for block in section.blocks if isinstance(block, Table)).rows}
    inside = looks[0].unsure["predictive_entropy"]
    outside = uncertainties(looks[0].fit, noise, num_samples=4)["predictive_entropy"]
    auroc = roc_auc_score(np.repeat([0, 1], [len(inside), len(outside)]), np.concatenate([inside, outside]))
    assert str(rows["cigl: predictive entropy"][1]).startswith(f"{auroc:.3f}")
    assert "cigl: mutual information" in rows
    assert "rigl: mutual information" not in rows, "one network has none"


def test_a_distilled_network_tells_another_world_in_one_pass(distilled_look: Look) -> None:
    noise = torch.randn(60, *distilled_look.data.shape, generator=torch.Generator().manual_seed(0))
    section = worlds.other_world([distilled_look], "noise", lambda _: noise, 4)
    rows = {row[0]: row for row in next(block for block in section.blocks if isinstance(block, Table)).rows}
    inside, outside = (information(distilled_look.fit, x) for x in (distilled_look.data.test.x, noise))
    auroc = roc_auc_score(np.repeat([0, 1], [len(inside), len(outside)]), np.concatenate([inside, outside]))
    assert str(rows["distilled: mutual information, one pass"][1]).startswith(f"{auroc:.3f}")


def test_corrupted_images_are_scored_by_severity(looks: list[Look]) -> None:
    section = worlds.shift(looks[:1], ["gaussian noise", "contrast"], 2)
    found = next(block for block in section.blocks if isinstance(block, Figure) and block.title.startswith("accuracy"))
    assert found.data is not None
    curve = {row[1]: row[2] for row in found.data[1] if row[0] == "cigl: ticket"}
    assert curve[0] == pytest.approx(looks[0].scores["ticket"]["accuracy"])
    x = [shifted(looks[0].data, kind, 3).x for kind in ("gaussian noise", "contrast")]
    by_hand = np.mean([accuracy(looks[0].fit.predict(each)[0].numpy(), looks[0].labels) for each in x])
    assert curve[3] == pytest.approx(by_hand)


def test_runs_beside_each_other_are_as_if_they_were_alone(looks: list[Look]) -> None:
    """Images are corrupted once for all runs that take the same inputs, and anew for one whose inputs are scaled otherwise."""
    mean, sd = looks[0].data.input_scale
    other = looks[0].data._replace(train=_halved(looks[0]), test=Split(looks[0].data.test.x / 2, looks[0].data.test.y))
    data, fit = other._replace(input_scale=(mean, 2 * sd)), copy.copy(looks[0].fit)
    fit.record = {**fit.record, "inputs": data.preparation()}
    scaled = looks[0]._replace(name="scaled", data=data, predictor=fit)
    assert worlds._by_inputs([*looks, scaled]) == [looks, [scaled]]
    together = worlds.shift([*looks, scaled], ["contrast", "jpeg"], 2)
    alone = [worlds.shift([look], ["contrast", "jpeg"], 2) for look in (*looks, scaled)]
    for place in (1, 2, 3):
        figure = together.blocks[place]
        assert isinstance(figure, Figure)
        assert figure.data is not None
        assert figure.data[1] == [row for section in alone for row in section.blocks[place].data[1]]  # type: ignore[union-attr]


def _halved(look: Look) -> Split:
    return Split(look.data.train.x / 2, look.data.train.y)


def test_what_cannot_be_corrupted_is_refused_before_any_work(looks: list[Look], regression: Look) -> None:
    worlds.check_shift(looks[0].data, "test", ["all"])
    with pytest.raises(ValueError, match="expected a corruption of"):
        worlds.check_shift(looks[0].data, "test", ["rain"])
    with pytest.raises(ValueError, match="expected images of three colours"):
        worlds.check_shift(looks[0].data, "test", ["saturate"])
    with pytest.raises(ValueError, match="expected runs on labelled images"):
        worlds.check_shift(regression.data, "test", ["contrast"])


def test_checks_of_a_run_stand_with_their_p_values(looks: list[Look], regression: Look) -> None:
    for look, statistic in ((looks[0], "accuracy[3]"), (regression, "spread over mean")):
        section = worlds.criticism([look], replicates=20)
        table = next(block for block in section.blocks if isinstance(block, Table))
        assert statistic in [row[0] for row in table.rows]
        p = [float(str(row[3]).split()[0]) for row in table.rows]
        figure = next(block for block in section.blocks if isinstance(block, Figure))
        assert f"p {min(p):.3f}" in figure.says


def test_each_run_is_given_another_world_as_it_takes_its_inputs(looks: list[Look]) -> None:
    mean, sd = looks[0].data.input_scale
    other = looks[0]._replace(name="scaled", data=looks[0].data._replace(input_scale=(mean, 2 * sd)))
    noise = torch.randn(40, *looks[0].data.shape, generator=torch.Generator().manual_seed(0))

    def read(own: Data) -> torch.Tensor:
        return noise / own.input_scale[1].mean()

    def auroc(among: list[Look]) -> dict[str, str]:
        table = next(block for block in worlds.other_world(among, "noise", read, 4).blocks if isinstance(block, Table))
        return {str(row[0]): str(row[1]) for row in table.rows}

    assert auroc([looks[0], other]) == auroc(looks[:1]) | auroc([other])


def test_a_likelihood_without_a_variance_has_no_doubts_to_tell_by(regression: Look) -> None:
    look = regression._replace(unsure={})
    section = worlds.other_world([look], "noise", lambda own: own.test.x + 9, 4)
    assert ["no variance" in block.text for block in section.blocks] == [True]
    (_, told) = worlds.criticism([look], 5).blocks
    assert "no variance" in told.text

"""Claims about a regression's sections: PIT, coverage and residuals are those of the predictive distribution."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import kstest, norm

from espalier.pages import Table, Text
from espalier.pictures import plots
from espalier.prediction import Mixture
from espalier.reports import report, targets
from espalier.reports.look import Look


def told(look: Look) -> targets.Told:
    return targets.told_of(look.predicted["redraw"], look.labels)


def test_the_pit_is_the_mixtures_distribution_function(regression: Look) -> None:
    draws = regression.fit.predict(regression.data.test.x, "redraw", num_samples=4).double().numpy()
    by_hand = np.mean([norm.cdf(regression.labels, mean, sd) for mean, sd in zip(draws[..., 0], draws[..., 1], strict=True)], 0)
    np.testing.assert_allclose(told(regression).pit, by_hand, atol=1e-6)


def test_the_pit_of_any_likelihood_is_uniform_where_it_is_right(regression: Look) -> None:
    rate = torch.full((4000,), 3.5)
    y = torch.poisson(rate, generator=torch.Generator().manual_seed(0)).double()
    said = Mixture([torch.distributions.Poisson(rate.double())])  # type: ignore[list-item]

    class Right(Look):
        @property
        def labels(self) -> np.ndarray:  # type: ignore[type-arg]
            return y.numpy()

    look = Right(*regression._replace(predicted={"redraw": said}))
    pit, centre, wide = told(look)
    assert abs(pit.mean() - 0.5) < 4 * pit.std() / np.sqrt(len(pit))
    assert kstest(pit, "uniform").pvalue > 1e-3  # which half of each tie would not be
    assert "0 of 20 bars are outside" in targets.pit_figure({"right": pit}).says
    np.testing.assert_allclose(centre, 3.5)
    np.testing.assert_allclose(wide, np.sqrt(3.5))


def test_coverage_counts_targets_in_central_intervals(regression: Look) -> None:
    table = next(block for block in targets.intervals([regression], [told(regression)]).blocks if isinstance(block, Table))
    pit = told(regression).pit
    for level, share in zip(targets.LEVELS, table.rows[0][1:], strict=True):
        assert float(str(share).split()[0]) == pytest.approx(np.mean(np.abs(pit - 0.5) <= level / 2), abs=6e-4)
        low, high = map(float, str(share).split(" ", 1)[1].strip("[]").split(", "))
        assert low <= float(str(share).split()[0]) <= high


def test_residuals_are_dots_that_nothing_joins_over_the_band_of_a_normals() -> None:
    """They come in the order of the rows: joined they were a tangle."""
    centre, rest = np.random.default_rng(0).normal(size=(2, 20_000))
    band, dots = targets.residual_picture("line", centre, rest).curves
    axes = plots.curves(targets.residual_picture("line", centre, rest)).axes[0]
    assert [line.get_linestyle() for line in axes.lines] == ["-", "None"]
    np.testing.assert_array_equal(np.asarray(axes.lines[1].get_xydata()), np.stack([centre, rest], 1))
    inside = (np.asarray(band.low)[0] <= rest) & (rest <= np.asarray(band.high)[0])
    assert abs(inside.mean() - 0.95) < 4 * np.sqrt(0.95 * 0.05 / len(rest))
    assert dots.style == "dots"


def test_the_farthest_example_is_the_largest_standardised_residual(regression: Look) -> None:
    table = next(block for block in targets.furthest(regression, told(regression)).blocks if isinstance(block, Table))
    draws = regression.fit.predict(regression.data.test.x, "redraw", num_samples=4).double().numpy()
    wide = np.sqrt((draws[..., 1] ** 2).mean(0) + draws[..., 0].var(0))
    rest = (regression.labels - draws[..., 0].mean(0)) / wide
    assert int(str(table.rows[0][0])) == np.abs(rest).argmax()
    assert float(str(table.rows[0][1])) == pytest.approx(regression.labels[np.abs(rest).argmax()], rel=1e-3)


@pytest.mark.parametrize("law", ["Student's t", "Cauchy"])
def test_a_law_without_a_variance_has_its_sections_all_the_same(regression: Look, law: str) -> None:
    n = len(regression.labels)
    centre, scale = torch.as_tensor(regression.labels).double(), torch.ones(n).double()
    said = Mixture([dist.StudentT(1.5 * scale, centre, scale) if law == "Student's t" else dist.Cauchy(centre, scale)])
    look = regression._replace(predicted={**regression.predicted, "redraw": said}, unsure={})
    found = told(look)
    assert np.isnan(found.wide).all()
    np.testing.assert_allclose(found.centre, regression.labels, atol=0.5)
    sections = targets.sections([look])
    assert [section.title for section in sections][-1] == "Examples"
    assert any("has no variance" in block.text for block in sections[2].blocks if isinstance(block, Text))


def test_two_regressions_stand_beside_each_other_with_paired_differences(regression: Look) -> None:
    said = {way: np.stack([each[..., 0] + 2000.0, 1.5 * each[..., 1]], -1) for way, each in regression.predicted.items()}
    other = regression._replace(name="other", predicted=said)
    (section,) = report.comparison([regression, other])
    table = next(block for block in section.blocks if isinstance(block, Table))
    rows = {str(row[0]).partition(": ")[2]: [str(each) for each in row[1:]] for row in table.rows}
    (mean, sd), y = np.moveaxis(regression.predicted["ticket"][0], -1, 0), regression.labels
    assert float(rows["squared error"][0]) == pytest.approx(float(((mean + 2000 - y) ** 2 - (mean - y) ** 2).mean()), rel=1e-3)
    assert rows["squared error"][2] == "lost"
    gap = norm.logpdf(y, mean, sd) - norm.logpdf(y, mean + 2000, 1.5 * sd)
    assert float(rows["NLL"][0]) == pytest.approx(float(gap.mean()), rel=1e-3)
    assert set(rows) == {"NLL", "CRPS", "squared error"}
    assert report.comparison([regression]) == []
    normal = Mixture([dist.Normal(torch.tensor(mean), torch.tensor(sd))])
    mixture = regression._replace(name="mixed", predicted={"ticket": normal})
    for name, own in targets.losses(mixture).items():
        by_draws = {"rtol": 0.1, "atol": 0.1 * sd.max()} if name == "CRPS" else {"rtol": 1e-5}
        np.testing.assert_allclose(own, targets.losses(regression)[name], **by_draws)

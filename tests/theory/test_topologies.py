"""Topologies and gradients through draws of M: the claims hold, and wrong formulas are caught."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy import special

from espalier.distributions import subsets as distribution
from espalier.distributions.subsets import KSubset, overlap_with_mode
from espalier.guides.hierarchy import LeaveOneOutELBO
from espalier.theory import topologies
from rewritten import Rewrite, Rewrites, assert_seen
from wrong import assert_all_have_mutations, assert_caught, assert_holds, mutants

CLAIMS = {claim.name: claim for claim in topologies.CLAIMS}


class OwnBaseline(LeaveOneOutELBO):
    """The mean of all particles, one's own among them, as baseline: biased by the factor (S - 1) / S."""

    def differentiable_loss(self, model, guide, *args, **kwargs):
        elbos, scores = [], []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            elbos.append(model_trace.log_prob_sum() - guide_trace.log_prob_sum())
            scores.append(guide_trace.nodes["M"]["log_prob_sum"] + guide_trace.nodes["Z"]["log_prob_sum"])
        elbo, score = torch.stack(elbos), torch.stack(scores)
        advantage = (elbo - elbo.mean()).detach()
        return -(elbo + advantage * (score - score.detach())).mean()


class NoScore(Trace_ELBO):
    """The path alone, as if M did not depend on U."""

    def differentiable_loss(self, model, guide, *args, **kwargs):
        traces = list(self._get_traces(model, guide, args, kwargs))
        return -torch.stack([m.log_prob_sum() - g.log_prob_sum() for m, g in traces]).mean()


def subsets(logit_factor: float = 1.0, zeros: bool = False):
    def enumerate_all(logits, k):
        rows, _ = topologies.subsets_by_hand(logits, k)
        return rows, special.softmax((1 - rows if zeros else rows) @ (logit_factor * logits))

    return enumerate_all


MUTATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "subsets-enumeration": {
        "logits doubled": {"enumerate_all": subsets(2.0)},
        "sign of the logits": {"enumerate_all": subsets(-1.0)},
        "sums over the zeros": {"enumerate_all": subsets(zeros=True)},
    },
    "subsets-large": {
        "k off by one": {"reference": lambda logits, k: topologies.log_elementary_symmetric(logits, k - 1)},
        "logits halved": {"reference": lambda logits, k: topologies.log_elementary_symmetric(logits / 2, k)},
    },
    "subsets-mode": {
        "the mode itself": {"overlap": lambda logits, k: torch.tensor(1.0)},
        "temperature one tenth": {"overlap": lambda logits, k: overlap_with_mode(10 * logits, k)},
    },
    "subsets-gradient": {
        "own draw in the baseline": {"elbo": OwnBaseline},
        "no score function": {"elbo": lambda count: NoScore(num_particles=count)},
    },
}  # fmt: skip

CODE_MUTATIONS: Rewrites = {
    "subsets-enumeration": {
        "normaliser of k - 1": Rewrite(distribution._log_count, "[..., 0, k]", "[..., 0, k - 1]"),
        "draws of any split": Rewrite(distribution._descend, "halves[:, 0::2] + halves", "0 * halves[:, 0::2] + halves"),
    },
    "subsets-large": {
        "angle of k - 1": Rewrite(distribution._contour, "- k * theta", "- (k - 1) * theta"),
    },
    "subsets-mode": {"the smallest": Rewrite(KSubset.mode.fget, "keep_top(row, self.k)", "keep_top(-row, self.k)")},
    "subsets-gradient": {
        "own draw in the baseline": Rewrite(LeaveOneOutELBO.differentiable_loss, " * len(elbo) / (len(elbo) - 1)", ""),
    },
}

pytestmark = pytest.mark.usefixtures("own_stream", "own_store")


def test_every_claim_has_mutations() -> None:
    assert_all_have_mutations(CLAIMS, MUTATIONS)


@pytest.mark.parametrize("name", CLAIMS)
def test_the_claim_holds(name: str) -> None:
    assert_holds(CLAIMS[name])


@pytest.mark.parametrize(("name", "mutation"), mutants(MUTATIONS))
def test_a_wrong_formula_is_caught(name: str, mutation: str) -> None:
    assert_caught(CLAIMS[name], MUTATIONS[name][mutation])


@pytest.mark.parametrize(("name", "wrong"), mutants(CODE_MUTATIONS))
def test_wrong_code_is_seen(name: str, wrong: str) -> None:
    assert_seen(CLAIMS[name], CODE_MUTATIONS[name][wrong])


def test_the_mode_is_a_large_step_at_temperature_one() -> None:
    finding = CLAIMS["subsets-mode"].check(True)
    assert finding.figures["normal, sd 0.05, 5 %"]["overlap"] == pytest.approx(0.0537, abs=2e-3)


def test_the_mode_has_to_be_a_large_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espalier.theory.topologies.MOST_SHARED", 0.05)  # below what is shared
    assert CLAIMS["subsets-mode"].check(True).verdict == "fails"


@pytest.mark.parametrize(("probs", "observed"), [
    ([0.997, 0.003], [2000, 2000]), ([0.9955, 0.0045], [3900, 100]), ([0.5, 0.497, 0.003], [1900, 1900, 200]),
    ([0.5, 0.3, 0.2], [2200, 1000, 800]),
])  # fmt: skip
def test_a_sampler_that_is_wrong_in_its_rare_cells_or_its_common_ones_is_seen(probs: list[float], observed: list[int]) -> None:
    assert topologies._chi_square(np.array(observed), np.array(probs)) < 1e-6


def test_a_right_sampler_has_p_values_that_are_no_smaller_than_they_say() -> None:
    rng, probs = np.random.default_rng(0), np.array([0.6, 0.35, 0.04, 0.006, 0.003, 0.001])
    p = np.array([topologies._chi_square(rng.multinomial(4000, probs), probs) for _ in range(2000)])
    assert (p < 0.01).mean() < 0.01 + 4 * (0.01 * 0.99 / 2000) ** 0.5

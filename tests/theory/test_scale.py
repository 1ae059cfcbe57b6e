"""Rescaling and temperature: the claims hold, and wrong formulas are caught."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.guides.masked import MaskedGuide
from espalier.prediction.fit import Fit
from espalier.theory import scale
from rewritten import Rewrite, Rewrites, assert_seen
from wrong import assert_all_have_mutations, assert_caught, assert_holds, mutants

CLAIMS = {claim.name: claim for claim in scale.CLAIMS}


MUTATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "scale-rescale": {
        "rate p": {"recipe": lambda p, rate, decay: (p, rate * p, decay / p**2)},
        "decay p^-1": {"recipe": lambda p, rate, decay: (p, rate * p**2, decay / p)},
        "start unscaled": {"recipe": lambda p, rate, decay: (1.0, rate * p**2, decay / p**2)},
    },
    "scale-logits": {
        "p^L": {"factor": lambda p, layers: p**layers},
        "one layer short": {"factor": lambda p, layers: p ** (1 - layers)},
        "1 - p for p": {"factor": lambda p, layers: (1 - p) ** -layers},
    },
}  # fmt: skip

CODE_MUTATIONS: Rewrites = {
    "scale-rescale": {"p twice": Rewrite(MaskedGuide.distribution, "* self.scale if", "* self.scale**2 if")},
    "scale-logits": {"mean without p": Rewrite(Fit.values, "last * (self.probs * self.scale)", "last * self.scale")},
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

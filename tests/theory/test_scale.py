"""Rescaling and temperature: the claims hold, and wrong formulas are caught."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.theory import scale

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
MUTANTS = [(claim, name) for claim, mutations in MUTATIONS.items() for name in mutations]

pytestmark = pytest.mark.usefixtures("own_stream", "own_store")


def test_every_claim_has_mutations() -> None:
    assert MUTATIONS.keys() == CLAIMS.keys()
    assert all(len(mutations) >= 2 for mutations in MUTATIONS.values())


@pytest.mark.parametrize("name", CLAIMS)
def test_the_claim_holds(name: str) -> None:
    finding = CLAIMS[name].check(True)
    assert finding.verdict == "holds", finding
    assert finding.compared


@pytest.mark.parametrize(("name", "mutation"), MUTANTS)
def test_a_wrong_formula_is_caught(name: str, mutation: str) -> None:
    finding = CLAIMS[name].check(True, **MUTATIONS[name][mutation])
    assert finding.verdict == "fails", finding

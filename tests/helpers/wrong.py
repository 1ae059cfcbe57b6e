"""Claims of the theory and formulas that are wrong on purpose: each claim holds, and its check catches every one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espalier.theory.claims import Claim, Finding

Mutations = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Claim -> what is wrong -> the formulas that its check is handed."""


def mutants(mutations: Mutations) -> list[tuple[str, str]]:
    return [(claim, name) for claim, wrong in mutations.items() for name in wrong]


def assert_all_have_mutations(claims: Mapping[str, Claim], mutations: Mutations) -> None:
    assert mutations.keys() == claims.keys()
    assert all(len(wrong) >= 2 for wrong in mutations.values())


def assert_holds(claim: Claim) -> Finding:
    finding = claim.check(True)
    assert finding.verdict == "holds", finding
    assert finding.compared
    return finding


def assert_caught(claim: Claim, wrong: Mapping[str, Any]) -> None:
    finding = claim.check(True, **wrong)
    assert finding.verdict == "fails", finding

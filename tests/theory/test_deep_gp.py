"""The claims of theory/deep_gp.py hold, and each is seen to fail when its formula is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.models.deep_gp import DeepGP
from espalier.references.gaussian_processes import elbo_draws, exact_posterior
from espalier.references.kernels import DeepArcCosine, arc_cosine_1
from espalier.theory import deep_gp
from rewritten import MORE_KEPT, Rewrite, Rewrites, assert_seen
from wrong import mutants

CLAIMS = {claim.name: claim for claim in deep_gp.CLAIMS}


def kernel_with(change):
    """`DeepArcCosine` whose options go through `change` first."""

    def kernel(depth, **options):
        return DeepArcCosine(depth, **change(options))

    return kernel


def one_minus(options):
    keep = options.get("keep_prob", 1.0)
    if isinstance(keep, float):
        return options
    return {**options, "keep_prob": [1 - p if p < 1 else p for p in keep]}


def elbo_with(kl):
    """The ELBO with its KL multiplied by `kl`."""

    def elbo(model, x, y, num_samples, num_data=None):
        return elbo_draws(model, x, y, num_samples, num_data) - (kl - 1) * model.variational_strategy.kl_divergence()

    return elbo


MUTATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "nngp-kernel": {
        "factor 2, Cho & Saul's k_1": {"expectation": lambda a, b, c: 2 * arc_cosine_1(a, b, c)},
        "sign of the angle": {"expectation": lambda a, b, c: arc_cosine_1(a, b, -c)},
        "1 - p for p": {"kernel": kernel_with(one_minus)},
        "rescale the other way": {"kernel": kernel_with(lambda o: {**o, "rescale": not o.get("rescale", False)})},
        "no biases": {"kernel": kernel_with(lambda o: {**o, "bias_variance": 0.0})},
    },
    "nngp-prior": {
        "factor 2": {"kernel": kernel_with(lambda o: {**o, "weight_variance": 2.0})},
        "density where the fan-in has it": {"kernel": kernel_with(lambda o: {**o, "density": 0.25})},
        "sparse layers scaled as dense ones": {"scale": lambda density: 1.0},
        "1 / density for its root": {"scale": lambda density: 1 / density},
        "the rates exchanged": {"powers": (-0.5, -1.0)},
    },
    "nngp-posterior": {
        "factor 2": {"kernel": kernel_with(lambda o: {**o, "weight_variance": 2.0})},
        "half the bias variance": {"kernel": kernel_with(lambda o: {**o, "bias_variance": 0.5 * o["bias_variance"]})},
        "noise as a standard deviation": {
            "posterior": lambda k, x, y, new, noise: exact_posterior(k, x, y, new, noise**0.5)
        },
        "sparse layers scaled as dense ones": {"scale": lambda density: 1.0},
        "rate of the square": {"power": -2.0},
    },
    "deep-gp-reference": {
        "noise as a standard deviation": {
            "posterior": lambda k, x, y, new, noise: exact_posterior(k, x, y, new, noise**0.5)
        },
        "variance of y for that of f": {
            "posterior": lambda k, x, y, new, noise: (lambda m, v: (m, v + noise))(
                *exact_posterior(k, x, y, new, noise)
            )
        },
        "half the KL": {"elbo": elbo_with(0.5)},
        "sign of the KL": {"elbo": elbo_with(-1.0)},
    },
    "deep-gp-bound": {
        "half the KL": {"elbo": elbo_with(0.5)},
        "no KL": {"elbo": elbo_with(0.0)},
        "a fifth of the KL missing": {"elbo": elbo_with(0.8)},
        "twice the KL": {"elbo": elbo_with(2.0)},
        "a nat too low": {"elbo": lambda *args: elbo_draws(*args) - 1},
        "sign of the KL": {"elbo": lambda *args: elbo_with(-1.0)(*args).clamp(max=1e3)},
    },
}

HALF_THE_KL = Rewrite(elbo_draws, "* fit - kl", "* fit - 0.5 * kl")

CODE_MUTATIONS: Rewrites = {
    "nngp-kernel": {"variances not halved": Rewrite(DeepArcCosine.forward, "a / 2, b / 2", "a, b")},
    "nngp-prior": {"P(Z = 1) + .02": MORE_KEPT},
    "nngp-posterior": {
        "second layer 10 % up": Rewrite(DeepGP.forward, "index == 0 else math.sqrt", "index == 0 else 1.1 * math.sqrt"),
    },
    "deep-gp-reference": {
        "half the KL": HALF_THE_KL,
        "variance of y for that of f": Rewrite(exact_posterior, "posterior.variance", "posterior.variance + noise"),
    },
    "deep-gp-bound": {"half the KL": HALF_THE_KL},
}


@pytest.mark.parametrize("name", CLAIMS)
def test_the_claim_holds(name):
    finding = CLAIMS[name].check(True)
    assert finding.verdict == "holds", finding
    assert finding.pictures or name == "deep-gp-reference"


@pytest.mark.parametrize(("name", "mutation"), [(name, m) for name, ms in MUTATIONS.items() for m in ms])
def test_a_wrong_formula_is_seen(name, mutation):
    finding = CLAIMS[name].check(True, **MUTATIONS[name][mutation])
    assert finding.verdict == "fails", (finding.discrepancy, finding.tolerance)


@pytest.mark.parametrize(("name", "wrong"), mutants(CODE_MUTATIONS))
def test_wrong_code_is_seen(name: str, wrong: str) -> None:
    assert_seen(CLAIMS[name], CODE_MUTATIONS[name][wrong])

"""Pruning that is certified: at most this risk, with this confidence, on a finite sample.

pvalues.py        p-values of "the risk is above alpha": exact binomial, betting, hinge, McDiarmid      no torch
risks.py          what is promised: error, disagreement, Brier, ECE, Dice ...                            no torch
selection.py      valid choice among many: fixed sequence, Holm, Pareto                                  no torch
certificate.py    the decision, the sentence, the page                                                   no torch
pruning.py        families of pruned predictors, their draws frozen
certify.py        a fit, a calibration split and the question: which member is certified
unseen.py         has training seen the calibration examples?
runs.py           certificates of run folders, and their ledger of looks
verification.py   everything recomputed from the files; training repeated without the split
signing.py        signatures by a key of the user's

Names are loaded when first asked for, so that the first four stay without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from espalier.lazy import lazily

if TYPE_CHECKING:
    from espalier.certificates.certificate import Anytime as Anytime
    from espalier.certificates.certificate import Decision as Decision
    from espalier.certificates.certificate import Promise as Promise
    from espalier.certificates.certificate import pareto as pareto
    from espalier.certificates.certify import Settings as Settings
    from espalier.certificates.certify import certify_fit as certify_fit
    from espalier.certificates.certify import certify_fits as certify_fits
    from espalier.certificates.pruning import Frozen as Frozen
    from espalier.certificates.pruning import family as family
    from espalier.certificates.pruning import layerwise as layerwise
    from espalier.certificates.pvalues import binomial as binomial
    from espalier.certificates.pvalues import hb as hb
    from espalier.certificates.pvalues import hinge as hinge
    from espalier.certificates.pvalues import mcdiarmid as mcdiarmid
    from espalier.certificates.pvalues import smallest_n as smallest_n
    from espalier.certificates.pvalues import wsr as wsr
    from espalier.certificates.risks import Risk as Risk
    from espalier.certificates.risks import named as named
    from espalier.certificates.runs import certify_run as certify_run
    from espalier.certificates.runs import load_pruned as load_pruned
    from espalier.certificates.selection import climb as climb
    from espalier.certificates.selection import rejected as rejected
    from espalier.certificates.verification import Check as Check
    from espalier.certificates.verification import verify as verify

__getattr__, __dir__ = lazily(
    __name__,
    {
        "pvalues": "binomial hb hinge mcdiarmid smallest_n wsr",
        "risks": "Risk named",
        "selection": "climb rejected",
        "certificate": "Anytime Decision Promise pareto",
        "pruning": "Frozen family layerwise",
        "certify": "Settings certify_fit certify_fits",
        "runs": "certify_run load_pruned",
        "verification": "Check verify",
    },
)

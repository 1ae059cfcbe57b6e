"""Every claim behind the method as a check with an independent answer: `espalier theory` runs them.

claims.py        what a claim is, and what checking it finds
literal.py       the four sites of eq. 3 against the collapsed guide
topologies.py    KSubset, the mode, gradients through draws of M
kl.py            the two-sided bound, the objective, the prior that weight decay is
scale.py         rescale as a reparametrisation, u for p u as a temperature
approximation.py three hidden layers at the rate of smooth and of sparse functions
deep_gp.py       finite width against the infinitely wide network
one_pass.py      one pass of means and variances against all masks
sbc.py           simulation-based calibration on the conjugate model
dependence.py    Z and W of the collected pairs
ground_truth.py  NUTS on a fixed topology
finite_width.py  for deep_gp: networks of finite width, and what they tend to
recorded.py      for dependence: trainings whose pairs are kept
constructed.py   for approximation: networks written down, and functions of known smoothness
rivals.py        for ground_truth: small posteriors, and who approximates them
run.py           all claims in processes
page.py          the page with the pictures
"""

from __future__ import annotations

import importlib
from difflib import get_close_matches

from espalier.theory.claims import Claim, apart

MODULES = ("literal", "topologies", "kl", "scale", "approximation", "deep_gp", "one_pass", "sbc", "dependence", "ground_truth")


def catalogue() -> dict[str, Claim]:
    """All claims by name, in the order of the page."""
    modules = [importlib.import_module(f"espalier.theory.{name}") for name in MODULES]
    return {claim.name: claim._replace(check=apart(claim.check)) for module in modules for claim in module.CLAIMS}


def chosen(names: list[str]) -> dict[str, Claim]:
    """The claims called `names`, or all. Raises ValueError for a name that there is not."""
    known = catalogue()
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"expected claims of {', '.join(known)}, got {name!r}{hint}")
    return {name: claim for name, claim in known.items() if not names or name in names}

"""Code that is wrong on purpose: a function of the package with a piece of it rewritten, and the claims that must see it."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType
from typing import Any, NamedTuple

import pytest

from espalier.distributions import masked
from espalier.theory.claims import Claim


class Rewrite(NamedTuple):
    """`old`, which stands once in a function or method of the package, becomes `new`; of a property give its `fget`."""

    function: Callable[..., Any]
    old: str
    new: str
    anew: bool = True
    """Is what checks keep between calls (worlds, trainings) made anew? Not where `function` has no part in it, or where it
    was kept before: a world that is made under the rewrite would stay."""


Rewrites = Mapping[str, Mapping[str, Rewrite]]
"""Claim -> what is wrong -> the code that is."""


KL_WITHOUT_P = Rewrite(masked.curvature, "keep_prob / prior", "1 / prior")
MORE_KEPT = Rewrite(masked.draw_keep, "effective_keep_prob(keep_prob))", "(effective_keep_prob(keep_prob) + 0.02))")
"""P(Z = 1) is .02 above what the KL and the record say it is."""


@contextmanager
def rewritten(rewrite: Rewrite) -> Iterator[None]:
    """The package with `rewrite` in it, for whoever holds the function: it keeps its identity and changes its code."""
    function: Any = inspect.unwrap(rewrite.function)
    before = function.__code__
    with pytest.MonkeyPatch.context() as patch:
        if rewrite.anew:
            for module in [module for name, module in sys.modules.items() if name.startswith("espalier.theory.")]:
                for name, kept in vars(module).items():
                    if hasattr(kept, "cache_clear"):
                        patch.setattr(module, name, _made_under(rewrite, kept))
        function.__code__ = _compiled(function, rewrite.old, rewrite.new)
        try:
            yield
        finally:
            function.__code__ = before


@functools.cache
def _made_under(rewrite: Rewrite, kept: Callable[..., Any]) -> Callable[..., Any]:
    """A cache of its own for every rewrite: claims that it is tried on share what was trained under it."""
    return functools.cache(inspect.unwrap(kept))


def _compiled(function: Any, old: str, new: str) -> CodeType:
    """The function's code with `old` rewritten. The whole module is compiled, so that closures and `super()` stay."""
    module, text = inspect.getmodule(function), inspect.getsource(function)
    assert module is not None
    assert text.count(old) == 1, f"expected {function.__qualname__} to have one {old!r}, it has {text.count(old)}"
    source = inspect.getsource(module)
    assert source.count(text) == 1
    pending = [compile(source.replace(text, text.replace(old, new)), str(module.__file__), "exec", dont_inherit=True)]
    for code in pending:
        if code.co_firstlineno == function.__code__.co_firstlineno and code.co_qualname == function.__qualname__:
            return code
        pending += [each for each in code.co_consts if isinstance(each, CodeType)]
    raise AssertionError(f"{function.__qualname__} is not in its module")


def assert_all_have_rewrites(claims: Mapping[str, Claim], rewrites: Rewrites) -> None:
    """Every claim is tried on code outside the theory, which is all that it can vouch for."""
    assert rewrites.keys() == claims.keys()
    for wrong in rewrites.values():
        assert wrong
        for rewrite in wrong.values():
            module = inspect.unwrap(rewrite.function).__module__
            assert module.startswith("espalier.")
            assert not module.startswith("espalier.theory")


def assert_seen(claim: Claim, rewrite: Rewrite, quick: bool = True) -> None:
    """The claim fails; one that is recorded to fail holds, for the code is wrong so that it should."""
    with rewritten(rewrite):
        finding = claim.check(quick)
    assert finding.verdict == ("holds" if claim.fails else "fails"), (finding.discrepancy, finding.tolerance)

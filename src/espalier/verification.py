"""Does a certificate still hold? Everything is recomputed from the files, and whatever does not fit is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from espalier import runs, store
from espalier.certified_runs import code_digest, looks_in, ticket_of
from espalier.certifying import Settings, certify_fits
from espalier.evaluation import split_of
from espalier.streams import find_device


class Check(NamedTuple):
    """One thing that `verify` looked at."""

    what: str
    holds: bool
    says: str


def verify(path: Path, data_dir: str | None = None, device: str = "auto") -> list[Check]:
    """Recompute a certificate from the files. It still holds if every check does; stops where the next makes no sense.

    The checks: its own text, the pruned predictor's bytes, the ledger of looks, the runs, the calibration examples and their
    labels, then the tests themselves: the p-values, what they certify, and the tensors of what is certified.
    """
    found: list[Check] = []

    def check(what: str, good: bool, says: str) -> bool:
        found.append(Check(what, good, says))
        return good

    try:
        facts = store.check_signed(path)
    except (ValueError, OSError) as error:
        check("text", False, str(error))
        return found
    check("text", True, "the certificate is as it was written")
    ticket, hashes = ticket_of(path), facts["hashes"]
    if "pruned" in hashes:
        whole = ticket.is_file() and store.sha256(ticket.read_bytes()) == hashes["pruned"]
        check("pruned", whole, f"{ticket.name} is {'as it was certified' if whole else 'missing or altered'}")
    settings = _settings(facts["settings"])
    folders = [path.parent / name for name in facts["runs"]]
    asked = all(facts["asked"] in looks_in(folder) for folder in folders)
    told = {"alpha": settings.alphas[0], "delta": settings.delta, "settings": facts["settings"]}
    asked = asked and all(told[name] == facts[name] == facts["asked"][name] for name in told)
    check("looks", asked, "the question is in looks.json" if asked else "it answers no question that looks.json knows")
    try:
        fits = [runs.load(folder).to(find_device(device)) for folder in folders]
        data = runs.data_of(folders[0], data_dir)
        digests = [store.sha256((folder / "fit.safetensors").read_bytes()) for folder in folders]
        same = sorted(digests) == sorted(value for name, value in hashes.items() if name.startswith("fit of "))
        check("run", same, "the fit is the one that was certified" if same else "the fit is another one")
        own = data.hashes.get(settings.split) == hashes["calibration split"]
        check("data", own, f"the {settings.split} split is the one that was looked at" if own else
              f"the {settings.split} split holds other examples, labels or another order")  # fmt: skip
    except (ValueError, OSError) as error:
        check("run and data", False, str(error))
        return found
    if not all(one.holds for one in found):
        return found
    calibration = split_of(data, settings.split)
    again = certify_fits(fits, calibration, settings, data)
    close = _close(again.facts["p_values"], facts["p_values"])
    check("p-values", close, "recomputed, they are equal" if close else "recomputed, they differ")
    fields = ("lambda", "rejected", "grid", "n", "risks", "alpha", "delta", "chosen", "anchor")
    differ = [name for name in fields if _bare(runs.plain(again.facts.get(name))) != _bare(facts.get(name))]
    check(
        "decision",
        not differ,
        "recomputed, the same is certified" if not differ else f"recomputed, {', '.join(differ)} differ",
    )
    if again.chosen is not None and "pruned" in hashes:
        written, fresh = store.read_bundle(ticket).tensors, again.chosen.bundle().tensors
        equal = written.keys() == fresh.keys() and all(torch.equal(t.cpu(), written[n]) for n, t in fresh.items())
        check(
            "tensors",
            equal,
            "the pruned predictor follows from the run"
            if equal
            else "the pruned predictor does not follow from the run",
        )
    if hashes["code"] != code_digest():
        check("code", True, "note: another version of the code wrote it; the answers above are this one's")
    return found


def _settings(written: dict[str, Any]) -> Settings:
    """Back from JSON: lists were tuples."""
    own: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in written.items()}
    return Settings(**own)


def _close(one: Sequence[float | None], other: Sequence[float | None]) -> bool:
    return len(one) == len(other) and all(
        (a is None) == (b is None) and (a is None or b is None or abs(a - b) <= 1e-9 + 1e-6 * abs(b))
        for a, b in zip(one, other, strict=True)
    )


def _bare(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "file_bytes"} if isinstance(value, dict) else value

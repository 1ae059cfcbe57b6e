"""Does a certificate still hold? Everything is recomputed from the files, and whatever does not fit is named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from espalier import runs, store
from espalier.certificates import certificate
from espalier.certificates.certify import Settings, certify_fits
from espalier.certificates.runs import code_digest, hashes, looks_in, question, short, ticket_of
from espalier.prediction.evaluation import split_of
from espalier.training.streams import find_device

TOLD = {"asked", "looks", "runs", "notes", "device", "certified_run", "hashes"}
"""What a certificate holds besides what `certify_fits` comes to; each is checked for itself."""


class Check(NamedTuple):
    """One thing that `verify` looked at."""

    what: str
    holds: bool
    says: str


def verify(path: Path, data_dir: str | None = None, device: str = "auto") -> list[Check]:
    """Recompute a certificate from the files. It still holds if every check does; stops where the next makes no sense.

    The checks: its own text and the page beside it, the pruned predictor's bytes, the ledger of looks, the runs, the
    calibration examples and their labels, then all that the tests come to, and the tensors of what is certified.
    Raises ValueError for a file that is no certificate.
    """
    path = path / "certificate.json" if path.is_dir() else path
    found: list[Check] = []

    def check(what: str, good: bool, right: str, wrong: str) -> None:
        found.append(Check(what, bool(good), right if good else wrong))

    try:
        facts = store.check_signed(path)
    except (ValueError, OSError) as error:
        return [Check("text", False, str(error))]
    settings = _settings(path, facts)
    page = path.with_suffix(".md")
    told = page.is_file() and page.read_text(encoding="utf-8") == certificate.page(facts)
    check(
        "text",
        told,
        "the certificate and its page are as they were written",
        f"{page.name} does not say what {path.name} says",
    )
    ticket = ticket_of(path)
    wanted = facts["hashes"].get("pruned") if facts["lambda"] is not None else None
    if facts["lambda"] is not None:
        whole = ticket.is_file() and store.sha256(ticket.read_bytes()) == wanted
        check("pruned", whole, f"{ticket.name} is as it was certified", f"{ticket.name} is missing or altered")
    folders = [path.parent / name for name in facts["runs"]]
    try:
        fits = [runs.load(folder).to(find_device(device)) for folder in folders]
        data = runs.data_of(folders[0], data_dir)
        asked = question(settings, data, folders)
        looks = [look for look in looks_in(folders[0]) if look["examples"] == facts["asked"]["examples"]]
    except (ValueError, OSError, KeyError) as error:
        return [*found, Check("run and data", False, str(error))]
    check(
        "run",
        asked["fits"] == facts["asked"]["fits"],
        "the fit is the one that was certified",
        "the fit is another one",
    )
    check("data", asked["examples"] == facts["asked"]["examples"], f"the {settings.split} split is the one that was looked at",
          f"the {settings.split} split holds other examples, labels or another order")  # fmt: skip
    known = facts["asked"] == asked and all(asked in looks_in(folder) for folder in folders)
    known = known and all(look in map(short, looks) for look in facts["looks"]) and bool(facts["looks"])
    check("looks", known, "the question is in looks.json", "it answers no question that looks.json knows")
    if not all(one.holds for one in found):
        return found
    again = certify_fits(fits, split_of(data, settings.split), settings, data)
    fresh = runs.plain(again.facts)
    check(
        "p-values", _same(fresh["p_values"], facts["p_values"]), "recomputed, they are equal", "recomputed, they differ"
    )
    facts["hashes"].pop("pruned", None)
    facts["hashes"]["code"], own = code_digest(), facts["hashes"]["code"]
    differ = sorted(n for n in {*fresh, *facts} - {"p_values", *TOLD} if not _same(fresh.get(n), _bare(facts.get(n))))
    differ += ["hashes"] * (hashes(asked) != facts["hashes"])
    check("decision", not differ, "recomputed, the same is certified", f"recomputed, {', '.join(differ)} differ")
    if again.chosen is not None and wanted is not None:
        written, tensors = store.read_bundle(ticket).tensors, again.chosen.bundle().tensors
        equal = written.keys() == tensors.keys() and all(torch.equal(t.cpu(), written[n]) for n, t in tensors.items())
        check(
            "tensors",
            equal,
            "the pruned predictor follows from the run",
            "the pruned predictor does not follow from the run",
        )
    if own != code_digest():
        found.append(
            Check("code", True, "note: another version of the code wrote it; the answers above are this one's")
        )
    if len(looks) > len(facts["looks"]):
        joint = max(0.0, 1 - sum(look["spent"] for look in looks))
        found.append(Check("later looks", True, f"note: the split was looked at {len(looks)} times by now, and what these looks "
                           f"certify holds together with confidence {joint:g} alone"))  # fmt: skip
    return found


def _settings(path: Path, facts: dict[str, Any]) -> Settings:
    """Back from JSON: lists were tuples. Raises ValueError where this is no certificate."""
    wanted = {"settings", "asked", "looks", "runs", "hashes", "lambda", "p_values", "rejected", "grid"}
    written = facts.get("settings")
    if wanted - facts.keys() or not isinstance(written, dict) or written.keys() != set(Settings._fields):
        raise ValueError(f"expected a certificate of this version of Espalier, but {path} is none")
    own: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in written.items()}
    return Settings(**own)


def _same(one: Any, other: Any) -> bool:
    """Equal, numbers to six digits."""
    if isinstance(one, float) and isinstance(other, float | int) and not isinstance(other, bool):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    return bool(one == other)


def _bare(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "file_bytes"} if isinstance(value, dict) else value

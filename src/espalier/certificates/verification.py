"""Does a certificate still hold? Everything is recomputed from the files, and whatever does not fit is named.

No program of a stranger's is run for it (`runs/trust.py`). What it does not show, `limits` says.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from espalier import runs, store
from espalier.certificates import certificate
from espalier.certificates.certify import Settings, certify_fits
from espalier.certificates.runs import (
    certified_run,
    code_digest,
    hashes,
    ledger_in,
    looks_of,
    picture,
    question,
    scored_before,
    searched,
    short,
    siblings,
    ticket_of,
)
from espalier.certificates.signing import is_signed
from espalier.certificates.unseen import check_unseen
from espalier.contracts import Data, Split
from espalier.data.streamed import selected
from espalier.pictures import plots
from espalier.prediction.evaluation import split_of
from espalier.prediction.fit import Fit
from espalier.runs.trust import Untrusted
from espalier.training.streams import find_device

TOLD = {"asked", "looks", "runs", "circumstances", "device", "certified_run", "hashes"}
"""What a certificate holds besides what `certify_fits` comes to; each is checked for itself."""
DEVICE = re.compile(r"cpu|(cuda|mps)(:\d+)?")
VERSION = re.compile(r"\d+(\.\w+)*")


class Check(NamedTuple):
    """One thing that `verify` looked at."""

    what: str
    holds: bool
    says: str


def limits(retrained: bool, signed: bool) -> list[str]:
    """What a certificate that holds does not show, in plain words."""
    said = [] if signed else ["who made it: anybody can compute a checksum; a signature tells (`--sign`, `--key`)"]
    said += [
        "that nobody looked at the split before: only looks that were written down are known",
        "that the examples are independent draws of what it will meet",
    ]
    seen = "that training did not see the split: `--retrain` repeats it without"
    return said if retrained else [*said, seen]


def verify(
    path: Path,
    data_dir: str | None = None,
    device: str = "auto",
    *,
    data: str | None = None,
    retrain: bool = False,
    key: Path | None = None,
) -> list[Check]:
    """Recompute a certificate from the files. It still holds if every check does; stops where the next makes no sense.

    The checks: its own text, the page and the picture beside it, the pruned predictor's bytes, the ledger of looks, the runs,
    the calibration examples and their labels, then all that the tests come to, and the tensors of what is certified.
    data_dir, data: where named sets, or the runs' own file or folder, lie now. retrain: also repeat every training from its
    recipe, on data without the split, and compare the fits bit for bit. key: public key of who should have signed it.
    Raises ValueError for a file that is no certificate, and where a program would have to be run that is a stranger's.
    """
    path = path / "certificate.json" if path.is_dir() else path
    try:
        return _verified(path, (data_dir, data), device, retrain, key)
    except (KeyError, TypeError, AttributeError, IndexError) as error:  # it fails closed
        return [Check("text", False, f"{path.name} is not of the form that `certify` writes ({type(error).__name__}: {error})")]


def _verified(
    path: Path, where: tuple[str | None, str | None], device: str, retrain: bool, key: Path | None
) -> list[Check]:
    found: list[Check] = []

    def check(what: str, good: bool, right: str, wrong: str) -> None:
        found.append(Check(what, bool(good), right if good else wrong))

    try:
        facts = store.check_signed(path)
    except (ValueError, OSError) as error:
        return [Check("text", False, str(error))]
    if key is not None:
        found.append(Check("signature", *is_signed(path, key)))
    settings = _settings(path, facts)
    page = path.with_suffix(".md")
    told = page.is_file() and page.read_text(encoding="utf-8") == _page_of(facts)
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
        whole = whole and facts["chosen"]["file_bytes"] == ticket.stat().st_size
        check("pruned", whole, f"{ticket.name} is as it was certified", f"{ticket.name} is missing or altered")
    folders = [path.parent / name for name in facts["runs"]]
    try:
        fits = [runs.load(folder).to(find_device(device)) for folder in folders]
        loaded = runs.data_of(folders[0], *where)
        asked = question(settings, loaded, folders)
        looks = looks_of([ledger_in(folder) for folder in folders], facts["asked"]["examples"])
    except Untrusted:
        raise
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
    known = facts["asked"] == asked and all(asked in ledger_in(folder) for folder in folders)
    known = known and all(look in map(short, looks) for look in facts["looks"]) and bool(facts["looks"])
    check("looks", known, "the question is in looks.json", "it answers no question that looks.json knows")
    if not all(one.holds for one in found):
        return found
    possible = _circumstantial(facts, loaded, settings.split, fits)
    check("circumstances", possible, "they are as the files tell",
          "they are not what `certify` writes")  # fmt: skip
    again = certify_fits(fits, split_of(loaded, settings.split), settings, loaded)
    fresh = runs.plain(again.facts)
    check(
        "p-values", _same(fresh["p_values"], facts["p_values"]), "recomputed, they are equal", "recomputed, they differ"
    )
    found.append(_picture(path, facts))
    facts["hashes"].pop("pruned", None)
    facts["hashes"].pop("picture", None)
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
    if retrain:
        for folder in folders:
            found.append(retrained(folder, where))
    if scored_before(folders, settings.split) and not facts["circumstances"]["evaluated"]:
        found.append(Check("circumstances", True, f"note: `espalier evaluate` has scored the {settings.split} split since"))
    if possible:
        found += _beside(folders, asked, facts["circumstances"]["siblings"])
    if own != code_digest():
        found.append(
            Check("code", True, "note: another version of the code wrote it; the answers above are this one's")
        )
    if len(looks) > len(facts["looks"]):
        joint = max(0.0, 1 - sum(look["spent"] for look in looks))
        found.append(Check("later looks", True, f"note: the split was looked at {len(looks)} times by now, and what these looks "
                           f"certify holds together with confidence {joint:g} alone"))  # fmt: skip
    return found


def _beside(folders: Sequence[Path], asked: dict[str, Any], told: int) -> list[Check]:
    try:
        beside = siblings(folders, asked)
    except (ValueError, OSError, LookupError, TypeError):
        return [Check("circumstances", True, "note: a looks.json of another run beside it cannot be read")]
    if beside <= told:
        return []
    says = f"note: {beside} other runs beside it are certified on these examples by now, where its page tells of {told}"
    return [Check("circumstances", True, says)]


def _page_of(facts: dict[str, Any]) -> str | None:
    """None where the certificate is too strange to have one."""
    try:
        return certificate.page(facts)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return None


def _circumstantial(facts: dict[str, Any], data: Data, split: str, fits: Sequence[Fit]) -> bool:
    """Is what the page says in passing what `certify` could have written?"""
    found = facts["circumstances"]
    kinds = {"repeated": int, "searched": int, "evaluated": bool, "siblings": int, "matplotlib": str}
    if not isinstance(found, dict):
        return False
    found = {"searched": 0, **found}  # older ones do not speak of a search, and there was none
    right = {name: type(value) for name, value in found.items()} == kinds
    right = right and found["searched"] == searched(fits)
    right = right and found["siblings"] >= 0 and bool(VERSION.fullmatch(found["matplotlib"]))
    run = certified_run(facts, fits) if facts["rejected"] else None
    right = right and isinstance(facts["device"], str) and bool(DEVICE.fullmatch(facts["device"]))
    return right and facts.get("certified_run") == run and found["repeated"] == check_unseen(data, split_of(data, split))


def _picture(path: Path, facts: dict[str, Any]) -> Check:
    """Is the picture beside the certificate the one that its numbers draw?"""
    file, drawn = path.with_suffix(".png"), plots.png(plots.curves(picture(facts)))
    written = file.read_bytes() if file.is_file() else b""
    if store.sha256(written) != facts["hashes"].get("picture"):
        return Check("picture", False, f"{file.name} is missing or altered")
    if written == drawn:
        return Check("picture", True, f"{file.name} shows the numbers of the certificate")
    made = facts["circumstances"]["matplotlib"]
    if made != version("matplotlib"):
        said = f"note: {file.name} was drawn by matplotlib {made} and cannot be drawn alike here: trust the numbers"
        return Check("picture", True, said)
    return Check("picture", False, f"{file.name} does not show the numbers of the certificate")


def retrained(folder: Path, where: tuple[str | None, str | None]) -> Check:
    """Repeat a training from its recipe on the same rows, with no calibration and no test split in its reach."""
    data, record = runs.data_of(folder, *where), store.check_signed(folder / "record.json")
    if taught := record.get("distilled", {}).get("teachers"):
        names = ", ".join(one["run"] for one in taught)
        names += "".join(f" on {one['rows']} rows of {one['file']} too" for one in record["distilled"].get("inputs", []))
        return Check("training", False, f"{folder.name} was taught by {names}, which is in no recipe: it cannot be repeated")
    blind = data._replace(calibration=_none_of(data.calibration), test=_none_of(data.test))
    threads = torch.get_num_threads()
    torch.set_num_threads(int(record["versions"]["threads"]))
    try:
        with tempfile.TemporaryDirectory() as scratch:
            runs.repeat(runs.recipe_in(folder, where[1]), blind, Path(scratch) / "again")
            digest = store.sha256((Path(scratch) / "again" / "fit.safetensors").read_bytes())
    except (ValueError, RuntimeError) as error:
        return Check("training", False, f"{folder.name} could not be repeated without the split: {error}")
    finally:
        torch.set_num_threads(threads)
    if digest == record["files"]["fit.safetensors"]:
        return Check("training", True, f"{folder.name}, trained again without calibration and test rows, is equal bit for bit")
    others = {name: own for name, own in runs.versions().items() if record["versions"].get(name) != own}
    why = f"; it was made with other versions than {others}" if others else ""
    return Check("training", False, f"{folder.name}, trained again without calibration and test rows, is another fit{why}")


def _none_of(split: Split) -> Split:
    none = torch.arange(0)
    return Split(selected(split.x, none), split.y[none])


def _settings(path: Path, facts: dict[str, Any]) -> Settings:
    """Back from JSON: lists were tuples. Raises ValueError where this is no certificate."""
    wanted = {"settings", "asked", "looks", "runs", "hashes", "lambda", "p_values", "rejected", "grid", "circumstances"}
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

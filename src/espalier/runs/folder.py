"""A run folder: what was asked, what was reached, and all that is needed to go on after a kill.

config.yaml               the resolved recipe; `espalier fit --config` takes it
model.py, inference.py, init.safetensors    copies of the user's own programs and weights, where there are any
checkpoint.safetensors    while training; gone when it is done
teachers.json             who teaches, while runs teach what no recipe says (teaching.py); gone when it is done
pairs/*.safetensors       a collected pair (Z, u): a bit-packed mask, values of the active weights; written once
fit.safetensors           the rest of the fit
history.json              one row per epoch
record.json               signed: what was run, versions, hashes of data and files; written last
"""

from __future__ import annotations

import inspect
import platform
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from espalier import data, losses, shelf, store
from espalier.contracts import Data
from espalier.data.noise import file_of
from espalier.nested import plain
from espalier.network import BayesianNetwork
from espalier.prediction.ensemble import Ensemble, Pool
from espalier.prediction.fit import PAIRS, Fit
from espalier.randomness import seeded
from espalier.runs import lines
from espalier.runs.recipes import Recipe, check_written, read_config, resolve
from espalier.runs.trust import told
from espalier.sparse import kernels
from espalier.store import Bundle
from espalier.training import distributed
from espalier.training.options import Training
from espalier.training.watch import EVERY, Checkpoints, Watches

CHECKPOINT = "checkpoint.safetensors"
INIT = "init.safetensors"
TEACHERS = "teachers.json"
PASSING = CHECKPOINT, TEACHERS
Told = dict[str, list[dict[str, str]]]
"""`teachers`, their names and the digests of their records; and `inputs` without labels: file, rows and digest."""


def start(recipe: Recipe, folder: str | Path, watch: Watches = None, *, every: float = EVERY) -> Fit:
    """Run a recipe into a new folder. Raises ValueError where the folder exists: nothing is overwritten.

    every: seconds between checkpoints, at least.
    Whatever is wrong with the recipe shows before the folder is made, which happens when the training begins.
    """
    folder = Path(folder)
    _check_new(folder)
    check_written(recipe)
    distributed.barrier()  # the first process makes the folder after all have looked
    loaded, model = _materials(recipe)
    return _run(recipe, folder, loaded, model, watch, every, new=True)


def _check_new(folder: Path, told: Told | None = None) -> None:
    """Raises ValueError where the folder holds anything but what a run leaves that ended before its first checkpoint, or one that
    was taught just so."""
    if told != _told_in(folder):
        _check_taught(folder)
    ours = {"config.yaml", "model.py", "inference.py", INIT, PAIRS} if (folder / store.LOCK).exists() else set()
    if ours and (folder / TEACHERS).exists():
        ours |= {TEACHERS, "fit.safetensors", "history.json"}
    known = folder.is_dir() and all(path.name in ours or path.name.startswith(".") for path in folder.iterdir())
    if folder.exists() and not known:
        raise ValueError(
            f"expected a new folder, but {folder} exists: choose another --out, remove it, or `espalier resume {folder}`"
        )


def _told_in(folder: Path) -> Told:
    """Who was teaching a run that has not come to its end, and on what."""
    told = store.read_json(folder / TEACHERS) if (folder / TEACHERS).exists() and not finished(folder) else {}
    return {"teachers": told} if isinstance(told, list) else told  # of older ones


def _check_taught(folder: Path) -> None:
    """Raises ValueError where others were teaching the run in a folder: it is not ended by its recipe."""
    if told := _told_in(folder):
        names = " ".join(one["run"] for one in told["teachers"])
        raise ValueError(
            f"expected a run that its recipe ends, but {names} were teaching that in {folder} when it was cut off: `espalier "
            "distil` them into it once more, or remove it"
        )


def _begin(recipe: Recipe, folder: Path) -> None:
    """Write down what is asked, so that the run can be resumed: the user's own files first, the recipe last."""
    place = recipe.options["data_dir"]  # a run may be looked at from another folder
    own: dict[str, Any] = {"data_dir": place and str(Path(place).expanduser().resolve())}
    if Path(recipe.data).expanduser().exists() and recipe.data not in data.names():
        own["data"] = str(Path(recipe.data).expanduser().resolve())
    if noise := file_of(recipe.options["label_noise"]):
        own["label_noise"] = f"{noise[0].resolve()}:{noise[1]}"
    for part, name in (("model", recipe.model), ("inference", recipe.inference)):
        if name.endswith(".py"):
            store.write_bytes(folder / f"{part}.py", Path(name).read_bytes())
            own[part] = f"{part}.py"
    if recipe.options["init"]:
        store.write_bytes(folder / INIT, Path(recipe.options["init"]).read_bytes())
        own["init"] = INIT
    store.write_bytes(folder / "config.yaml", lines.dump(plain({**recipe.config(), **own})).encode())


def finished(folder: str | Path) -> bool:
    """Has the run come to its end? `record.json` is written last."""
    return (Path(folder) / "record.json").is_file()


def resume(
    folder: str | Path, watch: Watches = None, *, data_dir: str | None = None, source: str | None = None, every: float = EVERY
) -> Fit:
    """Go on with a killed run, bit for bit, from its last checkpoint or from the seed. A finished one is loaded. data_dir: where
    named sets lie now. source: where the run's own file or folder has moved."""
    folder = Path(folder)
    if finished(folder):
        tidy(folder)
        return load(folder)
    recipe = recipe_in(folder, source)
    with store.owned(folder) if distributed.rank() == 0 else nullcontext():
        if distributed.size() == 1 and finished(folder):  # by another process, while we waited
            return load(folder)
        loaded, model = _materials(recipe, data_dir)
        return _run(recipe, folder, loaded, model, watch, every)


def repeat(recipe: Recipe, loaded: Data, folder: Path, watch: Watches = None) -> Fit:
    """Run a recipe into a new folder, on data that are at hand."""
    return _run(recipe, folder, loaded, _model(recipe, loaded.shape, loaded.num_outputs), watch, EVERY, new=True)


def tidy(folder: Path) -> None:
    """Remove what a kill after the last write leaves in a finished run: its checkpoint, or who was to teach it."""
    if any((folder / name).exists() for name in PASSING) and finished(folder):
        with store.owned(folder):
            _remove_passing(folder)


def _remove_passing(folder: Path) -> None:
    for name in PASSING:
        (folder / name).unlink(missing_ok=True)


def check_finished(folder: str | Path) -> None:
    """Raises FileNotFoundError where there is no run folder, ValueError where its run has not ended."""
    folder = Path(folder)
    _check_taught(folder)
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(
            f"expected a run folder, but {folder} has no config.yaml; a fit saved from Python is read by Fit.load(folder, model)"
        )
    if not finished(folder):
        raise ValueError(f"expected a finished run, but {folder} is not: `espalier resume {folder}` finishes it")


def load(folder: str | Path, *, trust: bool = False) -> Fit:
    """The fit in a run folder, its model rebuilt from the recipe. Needs no data.

    trust: run a program of the folder's own, a model.py that this user has not run here before. Raises ValueError without.
    """
    folder = Path(folder)
    check_finished(folder)
    record = _checked_record(folder)
    with told(trust):
        model = _model(recipe_in(folder), tuple(record["shape"]), record["num_outputs"], start=False)
    return Fit.load(folder, model)


def ensemble(folders: Sequence[str | Path], *, pool: Pool = "probabilities", trust: bool = False) -> Ensemble:
    """The fits of several run folders as one predictor. Raises ValueError where they make none, and as `load` does."""
    for folder in folders:
        check_finished(folder)
    return Ensemble([load(folder, trust=trust) for folder in folders], pool)


def name_of(folders: Sequence[str | Path]) -> str:
    """What a run, or an ensemble of several, is called beside others."""
    first = Path(folders[0]).resolve().name
    return first if len(folders) == 1 else f"ensemble of {len(folders)} from {first}"


def data_of(folder: str | Path, data_dir: str | None = None, source: str | None = None) -> Data:
    """The data of a run, cut as they were. data_dir: where named sets lie now. source: where the run's own file or folder has
    moved. Raises ValueError where they are not the same rows any more."""
    folder = Path(folder)
    record = _checked_record(folder)
    recipe = recipe_in(folder, source)
    loaded = _loaded(recipe, data_dir)
    if record["data"]["hashes"] != loaded.hashes:
        raise ValueError(f"expected the data that {folder} was trained on, but {recipe.data} now holds other rows")
    return loaded


def _loaded(recipe: Recipe, data_dir: str | None = None) -> Data:
    options = recipe.of("data")
    return data.load(recipe.data, **{**options, "data_dir": data_dir or options.get("data_dir")})


def _checked_record(folder: Path) -> dict[str, Any]:
    """The record of a finished run, after a look at every file it speaks of and before any of them is run."""
    record = store.check_signed(folder / "record.json")
    own = {path.name for path in (folder / "model.py", folder / "inference.py") if path.exists()}
    if unlisted := own - record.get("programs", {}).keys():
        raise ValueError(f"expected the programs that {folder} was run with, but {min(unlisted)} was put there later: remove it")
    for name, digest in record.get("programs", {}).items():
        if store.sha256((folder / name).read_bytes()) != digest:
            raise ValueError(f"expected {folder / name} as it was run, but its SHA-256 differs: it was altered")
    return record


class RunWatch(Checkpoints):
    """Checkpoints in a run folder, which is made when training begins, and this process's own while `held` is."""

    def __init__(self, recipe: Recipe, folder: Path, inner: Watches, every: float, new: bool) -> None:
        super().__init__(folder / CHECKPOINT, inner, every=every, pairs=folder / PAIRS)
        self.recipe, self.folder, self.new, self.held = recipe, folder, new, ExitStack()

    def resume(self) -> Bundle | None:
        self.begin()
        return super().resume()

    def begin(self) -> None:
        if distributed.rank() or not self.new:
            return
        self.held.enter_context(store.owned(self.folder))
        _check_new(self.folder)  # another process may have begun, and ended, since we looked
        _begin(self.recipe, self.folder)
        self.new = False


def _run(
    recipe: Recipe,
    folder: Path,
    loaded: Data,
    model: BayesianNetwork,
    watch: Watches,
    every: float,
    new: bool = False,
) -> Fit:
    keeper = RunWatch(recipe, folder, watch, every, new)
    with keeper.held:
        return _kept(recipe, folder, loaded, model, keeper)


def _kept(recipe: Recipe, folder: Path, loaded: Data, model: BayesianNetwork, keeper: RunWatch) -> Fit:
    infer = shelf.load("inference", recipe.inference)
    training = Training(**recipe.of("training"))
    shared = {"training": training, "watch": keeper}
    wanted = {name: value for name, value in shared.items() if name in inspect.signature(infer).parameters}
    fit: Fit = infer(model, loaded, **recipe.of("inference"), **wanted)
    if distributed.rank():
        return fit
    keeper.begin()  # for an inference of the user's that has no use for a watch
    return _conclude(fit, folder, loaded)


def _conclude(fit: Fit, folder: Path, loaded: Data) -> Fit:
    """Write down what was reached, the record last."""
    programs = [name for name in ("config.yaml", "model.py", "inference.py", INIT) if (folder / name).exists()]
    fit.record |= {
        "recipe": lines.read(folder / "config.yaml", "a recipe file"),
        "programs": {name: store.sha256((folder / name).read_bytes()) for name in programs},
        **loaded.facts(),
        "versions": versions(),
    }
    kept = {store.name_of(digest) for digest in fit.save(folder)}
    for path in (folder / PAIRS).iterdir():
        if path.name not in kept:
            path.unlink()  # of a training that another one followed, or that a kill cut short
    _remove_passing(folder)
    return fit


def _materials(recipe: Recipe, data_dir: str | None = None) -> tuple[Data, BayesianNetwork]:
    Training(**recipe.of("training"))
    loaded = _loaded(recipe, data_dir)
    return loaded, _model(recipe, loaded.shape, loaded.num_outputs)


def _model(recipe: Recipe, shape: tuple[int, ...], num_outputs: int, start: bool = True) -> BayesianNetwork:
    """The model, initialised from the run's seed, and from pretrained weights where it shall start from some."""
    factory = shelf.load("models", recipe.model)
    with seeded(recipe.options.get("seed", 0)):
        try:
            loss = recipe.options.get("loss", losses.LIKELIHOOD)
            model: BayesianNetwork = losses.built(factory, shape, num_outputs, loss, **recipe.of("model"))
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            raise ValueError(f"expected a model that this machine can hold, but {recipe.model} is larger: {error}") from error
    if recipe.options["maskable"]:
        model = model.with_maskable(recipe.options["maskable"])
    if start and recipe.options["init"]:
        model.start_from(store.read_tensors(Path(recipe.options["init"])))
    return model


def recipe_in(folder: str | Path, source: str | None = None) -> Recipe:
    """The recipe of a run folder, with its own copies of the user's programs, and `source` in place of its data where given.

    Raises ValueError where it names a program or weights that are not its own: a run is whole in its folder.
    """
    folder = Path(folder)
    _check_taught(folder)
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"expected a run folder, but {folder} has no config.yaml")
    written = read_config(folder / "config.yaml")
    own = {"model": "model.py", "inference": "inference.py", "init": INIT}
    for part, name in own.items():
        named = str(written.get(part) or "")
        if (part == "init" or named.endswith(".py")) and named not in ("", str(folder / name)):
            raise ValueError(f"expected {folder / 'config.yaml'} to name {name} for its {part}, got {named}: it was altered")
    moved = [f"--data={source}"] if source else []
    return resolve([f"--config={folder / 'config.yaml'}", *moved])


def versions() -> dict[str, str]:
    """Versions of what computed the numbers."""
    found = {"python": platform.python_version(), "threads": str(torch.get_num_threads())}
    found |= {"processes": str(distributed.size()), "kernels": kernels.current().name}
    for package in ("espalier", "torch", "pyro-ppl", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found

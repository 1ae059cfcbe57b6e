"""What a machine with a GPU is good for here, one command: the tests, step times, draws, then the next pieces of the recipes.

    make gpu        or        python examples/benchmarks/gpu.py [--out runs/gpu] [--seconds 540] [--jobs 14] [--only PART ...]
        [--pieces GRID ...]

Parts, in order: `tests` (pytest -m gpu), `steps` (step_time.py), `draws` (draws.py), `pieces`: the grids of `PIECES`, two at a
time, their runs side by side on the device, until the seconds are over. What is cut off there goes on from its checkpoints when
the command is given again with the same --out; what is finished is not done again. Everything that was printed is appended to
--table. --pack writes what has to be carried elsewhere to go on there, or to be read: cells, histories, checkpoints.
"""

from __future__ import annotations

import argparse
import datetime
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
PIECES = ("cifar10-wrn22-30", "cifar10-residual", "cifar10-lenet", "fashion-mlp-auto",
          "cifar10-wrn22", "cifar10-resnet50", "cifar100-resnet50")  # fmt: skip
PARTS = ("tests", "steps", "draws", "pieces")


def run(words: list[str]) -> str:
    """What a command prints, while it is shown."""
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return "".join(lines)


def pieces(names: list[str], out: Path, until: float, jobs: int) -> None:
    """Two grids at a time, until the clock says so."""
    waiting, working = names, dict[str, subprocess.Popen[bytes]]()
    while waiting or working:
        while waiting and len(working) < 2:
            name = waiting.pop(0)
            words = ["-m", "espalier", "compare", str(HERE.parent / "grids" / f"{name}.yaml")]
            words += ["--out", str(out / name), "--jobs", str(max(1, jobs // 2)), "--checkpoint-every", "60"]
            with (out / f"{name}.log").open("ab") as log:
                working[name] = subprocess.Popen([sys.executable, *words], stdout=log, stderr=log, start_new_session=True)
        time.sleep(0.5)
        for name in [name for name, process in working.items() if process.poll() is not None]:
            print(f"{name}: {'done' if not working.pop(name).returncode else 'failed, see its log'}", flush=True)
        if time.monotonic() > until:
            for process in working.values():
                process.send_signal(signal.SIGINT)
            for name, process in working.items():
                process.wait()
                print(f"{name}: out of time, the same command goes on", flush=True)
            return


def pack(out: Path, target: Path) -> None:
    """Of each grid a file of what is finished, without the fits, and one of what is not."""
    target.mkdir(parents=True, exist_ok=True)
    for folder in [out / name for name in PIECES if (out / name).is_dir()]:
        with tarfile.open(target / f"{folder.name}.tar.gz", "w:gz", compresslevel=6) as results:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.suffix != ".safetensors" and "figures" not in path.parts:
                    results.add(path, path.relative_to(out))
        cut = [run for run in sorted((folder / "runs").glob("*")) if (run / "checkpoint.safetensors").is_file()]
        if cut:
            with tarfile.open(target / f"{folder.name}-to-go-on.tar.gz", "w:gz", compresslevel=1) as states:
                for path in cut:
                    states.add(path, path.relative_to(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--seconds", type=float, default=540, help="for all of it")
    parser.add_argument("--jobs", type=int, default=14, help="runs side by side, over two grids")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--pieces", nargs="+", choices=PIECES, default=PIECES)
    parser.add_argument("--table", type=Path, default=HERE / "gpu.md")
    parser.add_argument("--pack", type=Path, help="folder to write what has to travel into")
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.seconds
    if not torch.cuda.is_available():
        sys.exit("expected a CUDA device, but torch sees none: these recipes are not for a CPU")
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = [f"\n## {datetime.date.today()}, {torch.cuda.get_device_name()}, torch {torch.__version__}\n"]
    if "tests" in arguments.only:
        told = run(["-m", "pytest", "-q", "-m", "gpu", str(HERE.parents[1] / "tests" / "training")])
        found.append(f"`pytest -m gpu`: {told.splitlines()[-1]}\n")
    if "steps" in arguments.only:
        cells = ["mlp-512", "lenet", "wide_resnet", "resnet50"]
        for own in ([], ["--bf16"]):
            found.append(run([str(HERE / "step_time.py"), *cells, "--device", "cuda", "--rounds", "5", "--threads", "1", *own]))
    if "draws" in arguments.only:
        found.append(run([str(HERE / "draws.py"), "--device", "cuda"]))
    if "pieces" in arguments.only:
        pieces(list(arguments.pieces), arguments.out, until, arguments.jobs)
    if len(found) > 1:
        with arguments.table.open("a") as table:
            table.write("\n".join(found))
    if arguments.pack:
        pack(arguments.out, arguments.pack)


if __name__ == "__main__":
    main()

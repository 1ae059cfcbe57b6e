"""`espalier report`: what runs came to, in one page."""

from __future__ import annotations

from pathlib import Path

from espalier.cli.parser import Parser


def report(words: list[str]) -> int:
    parser = Parser(prog="espalier report", description="What runs came to, in one page that needs nothing else.")
    parser.add_argument(
        "run", type=Path, nargs="+", help="finished runs on the same data; the first is what others are compared with"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="PAGE.html")
    parser.add_argument("--split", default="test", help="train, validation, calibration or test (default)")
    parser.add_argument("--num-samples", type=int, default=16, help="fresh masks of `redraw`")
    parser.add_argument("--data-dir", help="where the data sets are; default: the run's own, then ESPALIER_DATA")
    parser.add_argument("--data", metavar="PATH", help="where the run's own file or folder of data has moved")
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    arguments = parser.parse_args(words)

    from espalier import runs
    from espalier.reports import report
    from espalier.reports.look import look_at
    from espalier.training.streams import find_device

    if not 1 <= arguments.num_samples <= 10_000:
        raise ValueError(f"expected --num-samples of 1 to 10,000, got {arguments.num_samples}")
    report.check_free(arguments.out)
    for folder in arguments.run:
        runs.check_finished(folder)
    options = {"data_dir": arguments.data_dir, "source": arguments.data, "num_samples": arguments.num_samples}
    device = find_device(arguments.device)
    looks = [look_at(folder, arguments.split, device=device, **options) for folder in arguments.run]
    report.write(arguments.out, looks)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 2**20:.1f} MiB, opens anywhere")
    return 0

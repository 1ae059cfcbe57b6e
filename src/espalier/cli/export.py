"""`espalier export`: a run as a folder to deploy."""

from __future__ import annotations

from pathlib import Path

from espalier.cli.parser import Parser


def export(words: list[str]) -> int:
    parser = Parser(prog="espalier export", description="Write one network of a run as a folder to deploy, without code.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--how", metavar="WAY", help="ticket, mean, unmasked, distilled, moments or certified (default: distilled, else ticket)"
    )
    parser.add_argument("--form", default="auto", help="of masked weights: dense, positions, or auto (default): the smaller")
    parser.add_argument("--name", help="on the model card (default: the run's)")
    parser.add_argument("--licence", default="unknown", help="on the model card, as hubs spell it: apache-2.0, say")
    parser.add_argument("--onnx", action="store_true", help="also write model.onnx, checked by onnxruntime")
    parser.of_data()
    arguments = parser.parse_args(words)

    from espalier.deployment import export_run

    folder = export_run(
        arguments.run,
        arguments.to,
        how=arguments.how,
        form=arguments.form,
        name=arguments.name,
        licence=arguments.licence,
        onnx=arguments.onnx,
        data_dir=arguments.data_dir,
        data=arguments.data,
    )
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        print(f"{path}  {path.stat().st_size:,} bytes")
    return 0

"""`espalier predict`: what a network says of new rows, as a table."""

from __future__ import annotations

from pathlib import Path

from espalier.cli.parser import Parser, check_samples


def predict(words: list[str]) -> int:
    parser = Parser(prog="espalier predict", description="Say of every row of a file its class, or its mean and interval.")
    parser.add_argument("source", metavar="FOLDER", help="an exported folder, a hub's id (owner/name), or a run")
    parser.add_argument("--data", required=True, metavar="X", help="an .npz with x, or a folder of images; no labels needed")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new .csv or .parquet file")
    parser.add_argument("--how", metavar="WAY", help="of a run: its way to predict (default: redraw; pairs of a chain)")
    parser.of_samples("masks of `redraw`, of a run")
    parser.add_argument("--data-dir", help="of an older run: where its data set is; default: the run's own, then ESPALIER_DATA")
    arguments = parser.parse_args(words)

    check_samples(arguments.num_samples)
    from espalier import deployment

    columns = deployment.predict(
        arguments.source,
        arguments.data,
        arguments.out,
        how=arguments.how,
        num_samples=arguments.num_samples,
        data_dir=arguments.data_dir,
    )
    shown = ", ".join([*list(columns)[:6], *(["..."] if len(columns) > 6 else [])])
    print(f"{arguments.out}: {len(columns['row']):,} rows, columns {shown}")
    return 0

"""`espalier theory`: every claim behind the method."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from espalier.cli.parser import Parser


def theory(words: list[str]) -> int:
    parser = Parser(prog="espalier theory", description="Check every claim behind the method against another answer.")
    parser.add_argument("claim", nargs="*", help="names of claims; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer draws and smaller grids: a minute, not ten")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/theory"),
                        help="where the page is; claims checked earlier by this version stay (default runs/theory)")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each (default 2)")
    parser.add_argument("--list", action="store_true", help="only say which claims there are")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, on stdout")
    arguments = parser.parse_args(words)

    from espalier.theory import chosen

    wanted = chosen(arguments.claim)
    if arguments.list and arguments.json:
        claims = [{"name": name, "claim": claim.says, "source": claim.source} for name, claim in wanted.items()]
        print(json.dumps({"claims": claims}, ensure_ascii=False))
        return 0
    if arguments.list:
        print("\n".join(f"{name:24s} {claim.says}" for name, claim in wanted.items()))
        return 0
    from espalier import store
    from espalier.cli.progress import counting
    from espalier.theory import run

    own: run.Page = {}
    with counting("claims", len(wanted)) as seen:
        found = run.run(list(wanted), arguments.quick, arguments.jobs, seen)
        with store.owned(arguments.out, run.WRITTEN):
            page = run.begun(arguments.out, list(wanted))
            for line in found:
                if line.quick and line.name in page and not page[line.name][0].quick:
                    own[line.name] = line, {}  # what was checked in full stays on the page
                else:
                    own[line.name] = page[line.name] = line, run.drawn(line, arguments.out)
                run.write(page, arguments.out)  # at each: what a run of ten minutes has found is not lost
                if not arguments.json:
                    print(run.sentence(line), flush=True)
    lines = [line for line, _ in own.values()]
    if arguments.json:
        print(run.text(own))
    else:
        held = sum(line.finding.verdict == "holds" for line in lines)
        print(f"\n{held} of {len(lines)} claims hold; figures and pictures: {arguments.out / 'index.html'}")
    surprises = [line.name for line in lines if line.finding.verdict == "fails" and not wanted[line.name].fails]
    if surprises:
        print(f"espalier: {', '.join(surprises)} failed, and held when this version was made", file=sys.stderr)
    return 1 if surprises else 0

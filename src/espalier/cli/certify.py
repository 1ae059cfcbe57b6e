"""The two commands about certificates; arguments in, sentences out, as everywhere in this wing."""

from __future__ import annotations

from pathlib import Path

from espalier.cli.parser import Parser


def certify(words: list[str]) -> int:
    parser = Parser(prog="espalier certify", description="Prune a run as far as its calibration split can certify.",
                     epilog="Several runs of the same data: choose the sparsest that can be certified.")  # fmt: skip
    add = parser.add_argument
    add("run", type=Path, nargs="+")
    add("--risk", action="append", help="error (default), disagreement, gap, brier, selective:T, miscoverage:Q, ece, dice, "
        "dice-change; several hold at once")  # fmt: skip
    add("--alpha", type=float, action="append", help="the level that the risk shall not exceed, one for each risk")
    add(
        "--delta",
        type=float,
        default=0.05,
        help="probability, over calibration sets, of a wrong certificate (default 0.05)",
    )
    add("--test", action="append", help="another p-value than the risk's own: binomial, wsr, hinge, hb, anytime")
    add("--split", default="calibration", help="calibration (default) or test")
    add("--predict", default="ticket", help="ticket (default), redraw, pairs, mean, unmasked or distilled")
    parser.of_samples("frozen draws of redraw")
    add("--by", default="magnitude", help="magnitude (default), layer-magnitude, snr, inclusion, bayes-factor or, of "
        "channels, nrs")  # fmt: skip
    add("--structure", default="weights", help="weights (default) or channels")
    add("--biases", action="store_true", help="biases go under the same threshold")
    add("--step", type=float, default=0.01, help="between pruning fractions (default 0.01)")
    add("--procedure", default="fixed-sequence", help="fixed-sequence (default), multi-start, holm or bonferroni")
    add(
        "--abstain", type=float, nargs="+", default=[], help="confidences below which no answer is given: a second axis"
    )
    add("--anchor", type=float, nargs=2, metavar=("ALPHA", "DELTA"), help="also certify the unpruned error, on labels")
    add("--weights", help="an .npy file of dQ/dP for each calibration example: covariate shift")
    add("--weight-bound", type=float, default=1.0, help="their upper bound")
    add("--seed", type=int, default=0, help="of frozen draws and of the order of the examples")
    add(
        "--again",
        action="store_true",
        help="declare another look at a split that was looked at; their deltas add up",
    )
    add("--out", type=Path, help="folder for the certificate; default: the run")
    parser.of_data()
    add("--sign", type=Path, metavar="KEY", help="sign the certificate with this private key (PEM, elliptic curve)")
    parser.of_device()
    add("--json", action="store_true", help="print one JSON object, and nothing else, on stdout")
    given = vars(parser.parse_args(words))
    if given["alpha"] is None:
        raise ValueError("expected --alpha, the level that the risk shall not exceed: 0.05, say")
    folders, named = given["run"], given["risk"] or ["error"]
    tests = given["test"] or [""] * len(named)

    from espalier import store
    from espalier.certificates import certificate
    from espalier.certificates.certify import Settings
    from espalier.certificates.runs import certify_run
    from espalier.certificates.signing import sign, signer

    by = signer(given["sign"]) if given["sign"] else None  # before a look is spent

    fields = {name: given[name] for name in Settings._fields if name in given}
    fields |= {
        "risks": tuple(named),
        "alphas": tuple(given["alpha"]),
        "tests": tuple(tests),
        "abstain": tuple(given["abstain"]),
    }
    fields |= {"anchor": tuple(given["anchor"]) if given["anchor"] else None}
    if given["weights"]:
        fields["weights"] = str(Path(given["weights"]).resolve())
    settings = Settings(**fields)
    options = {name: given[name] for name in ("out", "again", "data_dir", "data", "device")}
    path, result = certify_run(folders, settings, **options)
    if by is not None:
        sign(path, by)
    if given["json"]:
        print(path.read_text(encoding="utf-8"), end="")
        return 0
    print(certificate.sentence(result.facts))
    for line in (*certificate.caveats(store.read_json(path)), *certificate.help_sentences(result.facts)):
        print(f"  {line}")
    print(f"\n{path} ({path.with_suffix('.md').name} is the page to read, the .png its picture)")
    return 0


def verify(words: list[str]) -> int:
    parser = Parser(prog="espalier verify", description="Recompute a certificate from its files: does it still hold?")
    parser.add_argument("certificate", type=Path)
    parser.of_data()
    parser.of_device()
    parser.add_argument("--key", type=Path, metavar="PUB", help="public key (PEM) of who should have signed it")
    parser.add_argument("--retrain", action="store_true",
                        help="also repeat the training, without the split, and compare bit for bit")  # fmt: skip
    arguments = parser.parse_args(words)

    from espalier import store
    from espalier.certificates.verification import limits
    from espalier.certificates.verification import verify as recompute

    checks = recompute(
        arguments.certificate, arguments.data_dir, arguments.device, data=arguments.data, retrain=arguments.retrain,
        key=arguments.key,
    )  # fmt: skip
    for check in checks:
        print(f"{'ok  ' if check.holds else 'FAIL'}  {check.what}: {check.says}")
    holds = all(check.holds for check in checks)
    path = arguments.certificate / "certificate.json" if arguments.certificate.is_dir() else arguments.certificate
    facts = store.read_json(path)
    certified = isinstance(facts, dict) and facts.get("lambda") is not None
    held = "The certificate holds." if certified else "The record holds: it says that nothing was certified."
    print(f"\n{held}" if holds else "\nThe certificate does not hold.")
    if holds:
        print("This does not show:", *(f"  - {line}" for line in limits(arguments.retrain, arguments.key is not None)), sep="\n")
    return 0 if holds else 1

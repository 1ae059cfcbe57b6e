"""How much the p-value matters: what each certifies, and how often each is wrong at the boundary. Prints markdown.

    python examples/benchmarks/power.py [--worlds 10000] [--quick]

The first three tables are those of design/confident-pruning.md, 2.7. In the last a risk is exactly alpha: a p-value at most
delta is an error, and a valid one makes it in a share delta of worlds at most. clt and hb of raw signed losses are not valid.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from espalier.certificates import pvalues

Floats = NDArray[np.float64]
PValue = Callable[[Floats, float, float], Floats]  # of losses (worlds, n), alpha, delta
CELLS = 2_000_000  # losses held at once


def of_sums(p_value: Callable[..., Floats]) -> PValue:
    return lambda losses, alpha, delta: p_value(np.maximum(losses.sum(-1), 0), losses.shape[-1], alpha)


def of_counts(losses: Floats, alpha: float, delta: float) -> Floats:
    return pvalues.binomial(np.count_nonzero(losses, -1), losses.shape[-1], alpha)


def watched(losses: Floats, alpha: float, delta: float) -> Floats:
    return np.asarray(np.exp(-np.maximum(0, pvalues.wsr_path(losses, alpha, delta).max(-1))))


P: dict[str, PValue] = {
    "hoeffding": of_sums(pvalues.hoeffding),
    "hb": of_sums(pvalues.hb),
    "hinge": of_sums(pvalues.hinge),
    "binomial": of_counts,
    "wsr": pvalues.wsr,
    "wsr, watched": watched,
    "clt": lambda losses, alpha, delta: pvalues.clt(losses, alpha, asymptotic=True),
    "Bonferroni": lambda losses, alpha, delta: 100 * pvalues.wsr(losses, alpha, delta / 100),
    "hb, raw": of_sums(pvalues.hb),
    "hb, clipped": lambda losses, alpha, delta: P["hb"](np.maximum(losses, 0), alpha, delta),
    "hb, rescaled": lambda losses, alpha, delta: P["hb"]((1 + losses) / 2, (1 + alpha) / 2, delta),
}


# --- Losses -----------------------------------------------------------------------------------------------------------
def bernoulli(rng: np.random.Generator, shape: tuple[int, int], mean: float) -> Floats:
    return (rng.random(shape) < mean).astype(float)


def beta(sd: float) -> Callable[[np.random.Generator, tuple[int, int], float], Floats]:
    def losses(rng: np.random.Generator, shape: tuple[int, int], mean: float) -> Floats:
        size = mean * (1 - mean) / sd**2 - 1
        return rng.beta(mean * size, (1 - mean) * size, shape)

    return losses


def signed(losing: float) -> Callable[[np.random.Generator, tuple[int, int], float], Floats]:
    """-1 with probability `losing`, 1 with that and the mean."""

    def losses(rng: np.random.Generator, shape: tuple[int, int], mean: float) -> Floats:
        u = rng.random(shape)
        return (u < losing + mean).astype(float) - (u > 1 - losing)

    return losses


def chunks(
    draw: Callable[[np.random.Generator, tuple[int, int], float], Floats], n: int, mean: float, worlds: int
) -> Iterator[Floats]:
    rng, step = np.random.default_rng([n, round(1e6 * mean)]), max(1, CELLS // n)
    for start in range(0, worlds, step):
        yield draw(rng, (min(step, worlds - start), n), mean)


def rates(names: list[str], losses: Iterator[Floats], alpha: float, delta: float) -> dict[str, int]:
    """How many worlds each p-value certifies."""
    found = dict.fromkeys(names, 0)
    for chunk in losses:
        for name in names:
            found[name] += int((P[name](chunk, alpha, delta) <= delta).sum())
    return found


# --- Tables -----------------------------------------------------------------------------------------------------------
def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def largest_counts(orders: int) -> None:
    """The most errors that each certifies; WSR by its median p-value over orders of the losses."""
    delta, rows = 0.05, []
    for n, alpha in ((500, 0.05), (1000, 0.03), (2000, 0.05), (9000, 0.03), (9000, 0.01)):
        rng, counts = np.random.default_rng(n), np.arange(math.ceil(n * alpha) + 1)
        error = counts / n
        sd = np.sqrt(error * (1 - error) * n / (n - 1))
        z = np.divide(math.sqrt(n) * (error - alpha), sd, out=np.full(len(counts), -np.inf), where=sd > 0)
        tests = [f(counts, n, alpha) for f in (pvalues.hoeffding, pvalues.hb, pvalues.hinge, pvalues.binomial)]
        found = [int((p <= delta).sum()) - 1 for p in tests]

        def median(count: int, n: int = n, alpha: float = alpha, rng: np.random.Generator = rng) -> float:
            losses = rng.permuted(np.tile(np.repeat([1.0, 0.0], [count, n - count]), (orders, 1)), axis=1)
            return float(np.median(pvalues.wsr(losses, alpha, delta)))

        wsr = found[-1] + 2
        while wsr >= 0 and median(wsr) > delta:
            wsr -= 1
        clt = int((z <= norm.ppf(delta)).sum()) - 1
        bonferroni = int((tests[-1] <= delta / 100).sum()) - 1
        cells = [str(k) if k >= 0 else "–" for k in (*found, wsr, bonferroni, clt)]
        rows.append([f"{n}, {alpha}", *cells])
    head = ["n, alpha", "hoeffding", "hb", "hinge", "binomial", f"wsr (median, {orders} orders)", "Bonferroni", "(clt)"]
    table("Largest certified count of errors, delta 0.05 (Bonferroni: binomial over 100 candidates)", head, rows)


def largest_means(worlds: int) -> None:
    """The largest mean, in steps of 0.0025, that is certified in at least half of the worlds."""
    names, rows = ["hb", "hinge", "wsr", "Bonferroni", "clt"], []
    for n, alpha, sd in ((100, 0.10, 0.05), (200, 0.10, 0.10), (200, 0.20, 0.10), (1000, 0.20, 0.10)):
        cells = []
        for name in names:
            low, high = 0, round(alpha / 0.0025)  # certified (in the limit), not certified
            while high - low > 1:
                middle = (low + high) // 2
                held = rates([name], chunks(beta(sd), n, middle * 0.0025, worlds), alpha, 0.1)[name]
                low, high = (middle, high) if held >= worlds / 2 else (low, middle)
            cells.append(f"{low * 0.0025:.4f}" if low else "–")
        rows.append([f"{n}, {alpha}, {sd}", *cells])
    head = ["n, alpha, sd", "hb", "hinge", "wsr", "Bonferroni", "(clt)"]
    title = f"Largest mean certified in half of {worlds:,} runs, Beta losses, delta 0.1 (Bonferroni: wsr over 100 candidates)"
    table(title, head, rows)


def signed_gap(worlds: int) -> None:
    """How often a gap of risks is certified: 1 with probability `more`, -1 with probability `less`."""
    names, rows = ["hb, raw", "hb, clipped", "hb, rescaled", "wsr"], []
    for n, more, less in ((2000, 0.12, 0.10), (2000, 0.015, 0.010), (800, 0.015, 0.010)):
        held = rates(names, chunks(signed(less), n, more - less, worlds), 0.02, 0.1)
        kind = "type-I error" if more - less > 0.0199 else "power"
        rows.append([f"{n}, {more}/{less}", kind, *(f"{held[name] / worlds:.3f}" for name in names)])
    table("Signed gap, alpha 0.02, delta 0.1: share certified", ["n, P(1)/P(-1)", "what", *names], rows)


def type_one(worlds: int) -> None:
    """Every p-value where the risk is alpha, over many worlds, with Clopper-Pearson 95 % intervals."""
    rows = []

    def row(law: str, n: int, alpha: float, name: str, found: list[int]) -> None:
        intervals = [binomtest(k, worlds).proportion_ci(0.95) for k in found]
        cells = [f"{k / worlds:.4f} ({low:.4f}–{high:.4f})" for k, (low, high) in zip(found, intervals, strict=True)]
        rows.append([law, f"{n}, {alpha}", name, *cells])

    plain = ["hoeffding", "hb", "hinge", "wsr", "wsr, watched", "clt"]
    laws = [("Bernoulli", bernoulli, ["binomial", *plain]), ("Beta, sd 0.1", beta(0.1), plain)]
    laws += [("signed, P(-1) = 0.1", signed(0.1), ["wsr", "wsr, watched", "clt", "hb, raw", "hb, clipped"])]
    deltas = (0.05, 0.1)
    for law, draw, names in laws:
        for n, alpha in ((100, 0.1), (500, 0.05), (2000, 0.05)):
            held = [rates(names, chunks(draw, n, alpha, worlds), alpha, delta) for delta in deltas]
            for name in names:
                row(law, n, alpha, name, [times[name] for times in held])
    for n, alpha in ((100, 0.1), (500, 0.05), (2000, 0.05)):
        rng = np.random.default_rng([1, n])
        accepted = rng.binomial(n, 0.5, worlds)
        p = pvalues.selective(rng.binomial(accepted, alpha), accepted, alpha)
        row("accepted half", n, alpha, "selective", [int((p <= delta).sum()) for delta in deltas])
        share, confidence = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.35, 0.55, 0.75, 0.85])
        counts = rng.multinomial(n, share, worlds)
        hits = rng.binomial(counts, confidence + alpha * np.array([1, -1, 1, -1]))
        p = pvalues.mcdiarmid(np.abs(hits - counts * confidence).sum(1) / n, n, alpha)
        row("binned error alpha", n, alpha, "mcdiarmid", [int((p <= delta).sum()) for delta in deltas])
    head = ["losses", "n, alpha", "p-value", *(f"delta {delta}" for delta in deltas)]
    table(f"Type-I error at the boundary over {worlds:,} worlds, with 95 % intervals", head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the worlds")
    arguments = parser.parse_args()
    worlds = arguments.worlds // 20 if arguments.quick else arguments.worlds
    largest_counts(201)
    largest_means(max(100, worlds // 5))
    signed_gap(worlds)
    type_one(worlds)


if __name__ == "__main__":
    main()

"""Let a network decline: what is left of its errors when it answers only where it is sure?

    python examples/selective.py

Risk and coverage of CigL's ticket and of its random masks on the digits, and the threshold that a certificate may stand on.
"""

from __future__ import annotations

from espalier import Training, load_data
from espalier.calibration import max_probability, risk_coverage, selective_summary
from espalier.inference import cigl
from espalier.models import mlp


def main(epochs: int = 30) -> dict[str, float]:
    data = load_data("digits", train_size=500)
    model = mlp.model(data.shape, data.num_outputs, hidden=(64,))
    fit = cigl.infer(model, data, drop_rate=0.2, delta_t=10, training=Training(epochs=epochs, batch_size=50), seed=0)
    found = {}
    for way in ("ticket", "redraw"):
        draws = fit.predict(data.test.x, way).double().numpy()
        wrong = (draws.mean(0).argmax(1) != data.test.y.numpy()).astype(float)
        unsure = max_probability(draws)
        summary = selective_summary(unsure, wrong, coverage=0.8, risk=0.01)
        steps = risk_coverage(unsure, wrong)
        print(f"{way}: answering everything it errs in {wrong.mean():.3f}, answering 80 % in {summary['risk_at_coverage']:.3f}")
        low, high = summary["augrc_interval"]
        print(f"    AUGRC {summary['augrc']:.4f} [{low:.4f}, {high:.4f}]; errors stay below 1 % up to coverage "
              f"{summary['coverage_at_risk']:.2f}, that is with a confidence of at least "
              f"{1 - steps.threshold[max(0, round(summary['coverage_at_risk'] * len(wrong)) - 1)]:.2f}")  # fmt: skip
        found[f"{way} all"], found[f"{way} 80 %"] = float(wrong.mean()), float(summary["risk_at_coverage"])
    return found


if __name__ == "__main__":
    main()

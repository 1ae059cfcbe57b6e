"""scikit-learn's way: an estimator in a pipeline, cross-validated, with probabilities that mean what they say.

python examples/estimators.py             (seconds; scikit-learn's breast cancer and diabetes)
"""

from __future__ import annotations

import numpy as np
from sklearn.calibration import calibration_curve
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from espalier.adapters import SparseBayesianClassifier, SparseBayesianRegressor


def main(epochs: int = 50) -> dict[str, float]:
    x, y = load_breast_cancer(return_X_y=True, as_frame=True)
    rivals = {
        "sparse Bayesian": SparseBayesianClassifier(epochs=epochs, drop_rate=0.2, random_state=0),
        "logistic regression": LogisticRegression(),
    }
    found: dict[str, float] = {}
    for name, estimator in rivals.items():
        pipeline = make_pipeline(StandardScaler(), estimator)
        found[name] = -cross_val_score(pipeline, x, y, cv=5, scoring="neg_log_loss").mean()
        print(f"{name:20s} log loss {found[name]:.3f} (5-fold)")
    said = cross_val_predict(rivals["sparse Bayesian"], x, y, cv=5, method="predict_proba")[:, 1]  # it standardises itself
    true, predicted = calibration_curve(y, said, n_bins=4, strategy="quantile")
    print("said", np.round(predicted, 2), "and true", np.round(true, 2))

    x, y = load_diabetes(return_X_y=True, as_frame=True)
    fit_x, test_x, fit_y, test_y = train_test_split(x, y, random_state=0)
    regression = SparseBayesianRegressor(hidden=(32,), epochs=epochs, drop_rate=0.2, random_state=0).fit(fit_x, fit_y)
    mean, deviation = regression.predict(test_x, return_std=True)
    found["coverage"] = float((np.abs(test_y - mean) < 1.96 * deviation).mean())
    print(f"diabetes: R2 {regression.score(test_x, test_y):.2f}, 95 % intervals cover {found['coverage']:.0%}")
    return found


if __name__ == "__main__":
    main()

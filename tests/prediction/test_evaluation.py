"""A fit on a split: what is predicted is the mean of its draws, what is scored is calibration's summary of it."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from espalier import Training, calibration
from espalier.contracts import Split
from espalier.data import from_arrays
from espalier.inference import cigl, rigl
from espalier.models import mlp
from espalier.prediction.evaluation import SPLITS, evaluate, predictions, score, split_of
from espalier.prediction.fit import WAYS
from espalier.prediction.labelled import tree_of
from espalier.prediction.predict import outcome_of, parameters_of
from fitted import digits, regression, trained


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_what_is_predicted_of_classes_is_the_mean_over_the_draws_of_each_way(name: str) -> None:
    (fit, _), data = trained(name), digits()
    found = predictions(fit, data, "test", num_samples=5, seed=3)
    assert tuple(found) == (*WAYS, "moments")
    for way, probs in found.items():
        assert probs.dtype == np.float64
        expected = fit.predict(data.test.x, way, num_samples=5, seed=3).double().mean(0).numpy()
        np.testing.assert_allclose(probs, expected, rtol=0, atol=1e-12)


def test_the_ways_of_one_network_are_equal_to_the_last_bit() -> None:
    """Case U1: sixteen equal draws were added up and divided, so that a report took one network for two."""
    training = Training(epochs=1, batch_size=100, device="cpu")
    fit = rigl.infer(mlp.model((1, 8, 8), 10, hidden=(20,)), digits(), sparsity=0.5, delta_t=2, training=training)
    found = predictions(fit, digits(), num_samples=16)
    for probs in found.values():
        np.testing.assert_array_equal(probs, found["unmasked"])


@pytest.mark.parametrize(("name", "passes"), [("mlp-rigl", 1), ("conv-rigl", 1), ("mlp", 1 + 4 + 5 + 1 + 1 + 1)])
def test_a_network_is_evaluated_once_however_many_ways_it_has(name: str, passes: int) -> None:
    """And the bits are those of evaluating every draw of every way."""
    (fit, _), data = trained(name), digits()
    options = {"num_samples": 5, "seed": 3}
    by_draw = {
        way: [parameters_of(outcome_of(fit.model, weights, data.test.x, state)) for weights, state in fit.weights(way, **options)]
        for way in WAYS
    }
    rows: list[int] = []
    last = [module for module in fit.model.net.modules() if isinstance(module, torch.nn.Linear)][-1]
    hook = last.register_forward_hook(lambda module, x, y: rows.append(len(y)))
    found = predictions(fit, data, **options)
    hook.remove()
    assert sum(rows) >= passes * len(data.test.y)
    assert rows.count(len(data.test.y)) == passes
    for way, draws in by_draw.items():
        mean = draws[0].double()
        for count, draw in enumerate(draws[1:], 2):
            mean = mean + (draw - mean) / count
        np.testing.assert_array_equal(found[way], mean.detach().numpy())
        np.testing.assert_array_equal(fit.predict(data.test.x, way, **options), torch.stack(draws).detach())


def test_every_split_is_evaluated_by_the_scores_of_calibration() -> None:
    (fit, _), data = trained("mlp"), digits()
    for split in ("train", "test"):
        result = evaluate(fit, data, split, num_samples=4)
        labels = getattr(data, split).y.numpy()
        for way, probs in predictions(fit, data, split, num_samples=4).items():
            assert result["predict"][way] == calibration.classification_summary(probs, labels)
        assert (result["split"], result["num_examples"], result["num_samples"]) == (split, len(labels), 4)
        assert result["density"] == result["num_active"] / result["num_weights"]
        assert json.loads(json.dumps(result)) == result


def test_predictions_at_hand_are_scored_as_they_are() -> None:
    (fit, _), data = trained("mlp"), digits()
    uniform = np.full((len(data.test.y), 10), 0.1)
    result = evaluate(fit, data, predicted={"ticket": uniform})
    assert set(result["predict"]) == {"ticket"}
    assert result["predict"]["ticket"]["nll"] == pytest.approx(np.log(10))
    assert result["predict"] == score({"ticket": uniform}, data)


def test_a_regression_is_scored_by_all_its_draws_in_the_units_of_the_data() -> None:
    data, fit = regression()
    found = predictions(fit, data, num_samples=4)
    assert {way: draws.shape[1:] for way, draws in found.items()} == dict.fromkeys(found, (len(data.test.y), 2))
    assert len(found["redraw"]) == 4
    y = data.test.y.double().numpy() * data.target_scale + data.target_shift
    scores = evaluate(fit, data, num_samples=4)["predict"]
    for way, draws in found.items():
        assert scores[way] == calibration.regression_summary(draws[..., 0], draws[..., 1], y)
        assert scores[way]["rmse"] < 15 < y.std()


def test_a_split_that_is_unknown_or_empty_is_refused() -> None:
    data = digits()
    assert [split_of(data, name) for name in ("train", "test")] == [data.train, data.test]
    with pytest.raises(ValueError, match=f"expected a split of {', '.join(SPLITS)}, got 'tset'"):
        split_of(data, "tset")
    empty = data._replace(calibration=Split(data.test.x[:0], data.test.y[:0]))
    with pytest.raises(ValueError, match="expected examples in the calibration split, but this run was set up without"):
        split_of(empty, "calibration")


def test_an_image_of_targets_is_not_scored_as_labels() -> None:
    (fit, _), data = trained("mlp"), digits()
    masks = data._replace(test=Split(data.test.x, torch.zeros(len(data.test.y), 8, 8)))
    with pytest.raises(ValueError, match=r"expected probs .* and labels .*, got \(\d+, 10\) and \(\d+, 8, 8\)"):
        evaluate(fit, masks)


def test_rows_that_were_scaled_by_themselves_are_not_scored() -> None:
    """A newcomer's way: another set by `from_arrays`. Inputs, targets, columns of a frame; evaluated, or made a tree of."""
    rng, options = np.random.default_rng(0), {"drop_rate": 0.1, "training": Training(epochs=2, device="cpu")}
    x = rng.normal(size=(90, 3))
    data, moved = from_arrays(x, np.arange(90) % 2), from_arrays(x + 2.0, np.arange(90) % 2)
    fit = cigl.infer(mlp.model((3,), 2, hidden=(8,)), data, **options)
    for asked in (lambda: evaluate(fit, moved), lambda: tree_of([fit], moved, ways=["redraw"])):
        with pytest.raises(ValueError, match="expected scaled inputs as in training, but arrays has others: put new rows into"):
            asked()
    new = data._replace(test=Split(data.inputs(x + 2.0), data.train.y.new_tensor(np.arange(90) % 2)))
    assert evaluate(fit, new)["num_examples"] == 90
    other = cigl.infer(mlp.model((3,), 2, hidden=(8,)), moved, **options)
    with pytest.raises(ValueError, match="expected fits of inputs that were standardised alike"):
        tree_of([fit, other], data, ways=["redraw"])
    line = from_arrays(x, x[:, 0])
    of_line = cigl.infer(mlp.model((3,), 1, hidden=(8,), likelihood="normal"), line, **options)
    with pytest.raises(ValueError, match="expected scaled targets as in training"):
        evaluate(of_line, from_arrays(x, 3 * x[:, 0])._replace(input_scale=line.input_scale))
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    of_frame = cigl.infer(mlp.model((3,), 2, hidden=(8,)), from_arrays(frame, np.arange(90) % 2, standardise=False), **options)
    with pytest.raises(ValueError, match="expected columns in their order as in training"):
        evaluate(of_frame, from_arrays(frame[["b", "a", "c"]], np.arange(90) % 2, standardise=False))


def test_classes_of_other_names_are_not_scored() -> None:
    """Each set numbers its own: the same rows, two of three classes called otherwise."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 4)), np.array(["a", "b", "c"])[np.arange(90) % 3]
    data = from_arrays(x, y)
    fit = cigl.infer(mlp.model((4,), 3, hidden=(8,)), data, drop_rate=0.1, training=Training(epochs=1, device="cpu"))
    assert evaluate(fit, data)["num_examples"] > 0
    renamed = from_arrays(x, np.where(y == "a", "z", y))
    with pytest.raises(ValueError, match="expected the classes a, b, c in this order, as in training, but .* has b, c, z"):
        evaluate(fit, renamed)
    own = data._replace(test=Split(data.inputs(x[:60]), data.train.y.new_tensor(np.arange(60) % 3)))
    assert evaluate(fit, own)["num_examples"] == 60
    numbered = from_arrays(x, np.arange(90) % 3)
    fit = cigl.infer(mlp.model((4,), 3, hidden=(8,)), numbered, drop_rate=0.1, training=Training(epochs=1, device="cpu"))
    for same in ((np.arange(90) % 3).astype(str), np.array([*(np.arange(90) % 3)], dtype=object)):
        assert evaluate(fit, from_arrays(x, same))["num_examples"] > 0

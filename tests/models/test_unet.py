"""A network that decides for every pixel: images as targets through model, training, prediction; and PolypGen's loader."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from blobs import blobs
from espalier import Training, load_program
from espalier.prediction.fit import Fit
from places import ROOT

FOLDERS = [Path(os.environ.get("ESPALIER_DATA", "~/.cache/espalier")).expanduser() / "polyps",
           Path("/work/shared/data/polyps")]  # fmt: skip


def trained(inference: str = "cigl", epochs: int = 25, **options: object) -> Fit:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = load_program("models", "unet")((3, 16, 16), 2, channels=(4, 8))
    training = Training(epochs=epochs, batch_size=8, optimizer="adam", learning_rate=0.01, device="cpu")
    return load_program("inference", inference)(model, blobs(), training=training, **options)


def example():
    spec = importlib.util.spec_from_file_location("example_polyps", ROOT / "examples" / "polyps.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------------------------------- the network


def test_two_classes_are_one_logit_a_pixel_and_more_are_one_a_class():
    unet, x = load_program("models", "unet"), torch.randn(5, 3, 32, 64)
    for num_outputs, shape in [(1, (5, 32, 64)), (2, (5, 32, 64)), (4, (5, 32, 64, 4))]:
        model = unet((3, 32, 64), num_outputs)
        assert model.evaluate(model.initial, x).shape == shape
        assert model.outcome(model.initial, x).batch_shape == (5, 32, 64)


def test_a_pixel_sees_beyond_its_level_and_its_own_place():
    # a change at one pixel reaches the other side of what the deepest level spans, and most of all its own place
    model = load_program("models", "unet")((3, 32, 32), 2)
    x = torch.zeros(1, 3, 32, 32)
    before, x[0, :, 16, 16] = model.evaluate(model.initial, x), 1.0
    change = (model.evaluate(model.initial, x) - before)[0].abs()
    assert change[16, 16] > 0
    assert change[16, 4] > 0


@pytest.mark.parametrize("shape", [(3, 30, 32), (3, 32, 30), (32, 32)])
def test_sides_that_cannot_be_halved_are_refused(shape):
    message = (
        rf"^expected images \(channels, height, width\) of sides divisible by 4 for unet, got shape {re_tuple(shape)}: "
    )
    with pytest.raises(ValueError, match=message + "resize or crop them, or give fewer channels$"):
        load_program("models", "unet")(shape, 2)


def re_tuple(shape: tuple[int, ...]) -> str:
    return str(shape).replace("(", r"\(").replace(")", r"\)")


# ------------------------------------------------------------------------------------------------------------ the training


def test_training_improves_the_loss_under_the_mask_and_the_ticket_says_two_probabilities_a_pixel():
    fit = trained(sparsity=0.5, drop_rate=0.05, delta_t=20)
    assert fit.topology.num_active == round(0.5 * fit.topology.num_weights)
    assert sum(row["exchanged"] for row in fit.history) > 0
    assert fit.history[-1]["loss"] < 0.5 * fit.history[0]["loss"]
    test = blobs().test
    for how in fit.ways:
        draws = fit.predict(test.x, how, num_samples=3)
        assert draws.shape == ({"redraw": 3, "pairs": len(fit.pairs.values), "moments": 24}.get(how, 1), 16, 16, 16, 2)
        assert torch.allclose(draws.sum(-1), torch.ones(draws.shape[:-1], dtype=torch.float64), atol=1e-12)
        assert (draws >= 0).all()
    says = fit.predict(test.x, "ticket")[0, ..., 1]
    assert says[test.y == 1].mean() > says[test.y == 0].mean() + 0.3


def test_a_saved_fit_predicts_the_same_masks(tmp_path):
    fit, x = trained(epochs=1, sparsity=0.5), blobs().test.x
    fit.save(tmp_path / "run")
    again = Fit.load(tmp_path / "run", load_program("models", "unet")((3, 16, 16), 2, channels=(4, 8)))
    assert torch.equal(again.predict(x), fit.predict(x))


def test_moving_the_images_and_not_their_masks_is_refused():
    unet = load_program("models", "unet")((3, 16, 16), 2)
    says = r"^expected one label per example to augment, got targets of shape \(48, 16, 16\): images"
    with pytest.raises(ValueError, match=says):
        load_program("inference", "dense")(unet, blobs(), training=Training(augment="crop-flip", device="cpu"))


# -------------------------------------------------------------------------------------------------------------- the polyps


def test_dice_is_twice_the_overlap_over_the_sum_and_one_where_both_are_empty():
    full, none = torch.ones(4, 4), torch.zeros(4, 4)
    half = torch.cat([full[:2], none[:2]])
    said, true = torch.stack([full, half, half, none, full]), torch.stack([full, full, half, none, none])
    assert example().dice(said, true).tolist() == pytest.approx([1, 2 / 3, 1, 1, 0])


def test_turning_moves_images_and_masks_alike():
    train = blobs().train
    turned = example().turned(train)
    assert len(turned.x) == len(turned.y) == 8 * 48
    marked = example().turned(train._replace(x=train.y[:, None].expand(-1, 3, -1, -1)))
    assert torch.equal(marked.x[:, 0], marked.y)
    assert len(turned.y[::48].flatten(1).unique(dim=0)) == 8


def test_frames_that_are_not_there_are_asked_for(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"^expected PolypGen's frames, but .*polypgen_train.npz .* is not there: "
    ):
        example().load_polyps(tmp_path)


def test_polypgen_is_cut_by_frame_and_standardised_by_its_training_frames():
    folder = next((folder for folder in FOLDERS if (folder / "polypgen_train.npz").is_file()), None)
    if folder is None:
        pytest.skip("PolypGen's frames are not here: put them in $ESPALIER_DATA/polyps")
    module = example()
    data, other = module.load_polyps(folder, size=16), module.load_polyps(folder, size=16, seed=1)
    assert [len(part.y) for part in data[1:5]] == [*module.PARTS.values(), 150]
    assert data.train.x.shape[1:] == data.shape == (3, 16, 16)
    assert data.train.y.unique().tolist() == [0, 1]
    assert data.train.x.mean((0, 2, 3)).numpy() == pytest.approx(np.zeros(3), abs=1e-3)
    assert data.train.x.std((0, 2, 3)).numpy() == pytest.approx(np.ones(3), abs=1e-3)
    assert 0.05 < data.train.y.mean() < 0.11
    assert data.hashes["train"] != other.hashes["train"]
    assert len(set(data.hashes.values())) == 4

"""One forward pass of all rows: the same however they are batched, and nothing in the model changes."""

import copy

import torch
from torch import nn

from espalier.prediction.fit import WAYS
from fitted import TOLERANCE, digits, trained


def test_prediction_does_not_depend_on_how_rows_are_batched() -> None:
    fit, _ = trained("conv")
    x = digits().train.x
    assert len(x) > 1000  # several batches
    parts = torch.cat([fit.predict(part, "pairs") for part in x.split(333)], 1)
    torch.testing.assert_close(fit.predict(x, "pairs"), parts, rtol=0, atol=TOLERANCE)


def test_prediction_changes_nothing_in_the_model() -> None:
    fit, _ = trained("conv")
    before = copy.deepcopy(fit.model.state_dict())
    modes = [module.training for module in fit.model.modules()]
    momenta = [module.momentum for module in fit.model.modules() if isinstance(module, nn.BatchNorm2d)]
    for how in WAYS:
        fit.predict(digits().test.x[:30], how, num_samples=2)
    assert all(torch.equal(tensor, before[key]) for key, tensor in fit.model.state_dict().items())
    assert [module.training for module in fit.model.modules()] == modes
    assert [module.momentum for module in fit.model.modules() if isinstance(module, nn.BatchNorm2d)] == momenta

"""Claims about the network that learns: Nesterov SGD on the even mixture of what it is told, in units of its own variance.

Most of what it does is claimed where it is taught: test_distillation.py, test_distillation_moments.py, test_teachers.py.
"""

from __future__ import annotations

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F

from espalier.store import Bundle
from espalier.training.student import Refused, Student
from espalier.training.teachers import Teacher
from rounding import close
from taught import logits_of, masked_fit
from toys import toy

pytestmark = pytest.mark.usefixtures("float64", "own_store")


def told(number: int) -> list[dist.Categorical]:
    stream = torch.Generator().manual_seed(number)
    return [dist.Categorical(logits=torch.randn(len(toy().train.x), 3, generator=stream)) for _ in range(2)]


def test_it_takes_nesterov_s_steps_towards_the_mean_of_what_it_is_told() -> None:
    fit, x = masked_fit(), toy().train.x
    values, state = Teacher(fit).mean()
    student = Student(fit.model, values, state, lambda step: 0.1 / step)
    own = [values.clone(), state["net.0.bias"].clone(), state["net.2.bias"].clone()]
    momenta = [torch.zeros_like(tensor) for tensor in own]
    for step in (1, 2, 3):
        for tensor in own:
            tensor.requires_grad_()
        dense = torch.zeros(24).index_put((fit.topology.positions,), own[0])
        target = torch.stack([one.probs for one in told(step)]).mean(0)
        loss = F.cross_entropy(logits_of(dense, own[1], own[2], x), target)
        gradients = torch.autograd.grad(loss, own)
        close(student.learn(x, told(step), fit.dense), loss.detach())
        momenta = [0.9 * m + g for m, g in zip(momenta, gradients, strict=True)]
        steps = zip(own, momenta, gradients, strict=True)
        own = [(tensor - 0.1 / step * (g + 0.9 * m)).detach() for tensor, m, g in steps]
    found, rest = student.network()
    for mine, theirs in zip([found, rest["net.0.bias"], rest["net.2.bias"]], own, strict=True):
        close(mine, theirs)


def test_it_goes_on_from_a_bundle_as_if_it_had_not_stopped() -> None:
    fit, x = masked_fit(), toy().train.x
    first = Student(fit.model, *Teacher(fit).mean(), lambda _: 0.1)
    first.learn(x, told(1), fit.dense)
    tensors, facts = first.bundle()
    saved = Bundle({name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(facts)))
    second = Student(fit.model, *Teacher(fit).mean(), lambda _: 0.1)
    second.restore(saved)
    for student in (first, second):
        student.learn(x, told(2), fit.dense)
    assert torch.equal(first.network()[0], second.network()[0])


def test_a_loss_that_is_no_number_ends_it() -> None:
    fit = masked_fit()
    student = Student(fit.model, *Teacher(fit).mean(), lambda _: 0.1)
    refused = pytest.raises(Refused, match="stopped being finite: lower the distill_rate")
    with pyro.validation_enabled(False), refused:  # as teaching has it
        student.learn(toy().train.x * math.inf, told(1), fit.dense)

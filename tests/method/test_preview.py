"""The change that an optimiser would make, against the one that it makes: `change_by`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mtlbench.method.lookahead import change_by, descent_by
from mtlbench.method.optimisers import fused_on_cpu

OPTIMISERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.5}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 0.1, "amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.1}),
    "foreach": (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.1, "foreach": True}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.1, "momentum": 0.5}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1}),
    "nadam": (torch.optim.NAdam, {"lr": 0.1}),
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=OPTIMISERS)
def used(request):
    """Returns an optimiser after three steps, in two groups and with a schedule, and its first two parameters."""
    cls, options = OPTIMISERS[request.param]
    parameters = [nn.Parameter(draw(*shape, seed=9)) for shape in ((3, 5), (4,), (2, 2))]
    optimiser = cls([{"params": parameters[:1]}, {"params": parameters[1:], "weight_decay": 0.0}], **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.7**step)
    for step in range(3):
        for parameter in parameters:
            parameter.grad = draw(*parameter.shape, seed=step)
        optimiser.step()
        schedule.step()
    return optimiser, parameters


def test_a_preview_is_what_the_optimiser_does(used):
    optimiser, (one, two, rest) = used
    state, values = copy.deepcopy(optimiser.state_dict()), [p.detach().clone() for p in (one, two, rest)]
    gradient = [draw(*p.shape, seed=20) for p in (one, two)]
    flat = torch.cat([value.flatten() for value in gradient])
    found, again = (change_by(optimiser, [one, two], flat) for _ in range(2))
    assert torch.equal(found, again)
    # No trace: neither in parameters nor in what the optimiser remembers.
    assert repr(optimiser.state_dict()) == repr(state)
    assert all(torch.equal(p, value) for p, value in zip((one, two, rest), values, strict=True))
    one.grad, two.grad, rest.grad = *gradient, None
    optimiser.step()
    assert found.abs().min() > 1e-4
    made = [(parameter.detach() - value).flatten() for parameter, value in zip((one, two), values, strict=False)]
    assert_rounded(optimiser, found, torch.cat(made))


def assert_rounded(optimiser, found, real):
    """Equal bit for bit, but where fused kernels round in another order."""
    fused = any(fused_on_cpu(group) for group in optimiser.param_groups)
    torch.testing.assert_close(found, real, rtol=0, atol=1e-6 if fused else 0)


def test_momentum_of_some_parameters_and_none_of_others():
    one, two = nn.Parameter(draw(4)), nn.Parameter(draw(3))
    optimiser = torch.optim.SGD([one, two], lr=0.1, momentum=0.9)
    one.grad = draw(4, seed=1)
    optimiser.step()  # `two` has not met a gradient yet
    before, gradient = torch.cat([one.detach(), two.detach()]), draw(7, seed=2)
    found = change_by(optimiser, [one, two], gradient)
    one.grad, two.grad = gradient.split([4, 3])
    optimiser.step()
    assert_rounded(optimiser, found, torch.cat([one.detach(), two.detach()]) - before)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_parameters_in_another_memory_format(name):
    kind, options = OPTIMISERS[name]
    parameter = nn.Parameter(draw(2, 3, 4, 5).to(memory_format=torch.channels_last))
    optimiser, gradient = kind([parameter], **options), draw(2, 3, 4, 5, seed=1)
    found, before = change_by(optimiser, [parameter], gradient.flatten()), parameter.detach().clone()
    parameter.grad = gradient.clone()
    optimiser.step()
    assert_rounded(optimiser, found, (parameter.detach() - before).flatten())


def test_momentum_and_decay_by_hand():
    """v = 0.9 · 1 + (2 + 0.5 · 4) = 4.9, and the step is -0.1 v."""
    parameter = nn.Parameter(torch.tensor([4.0]))
    optimiser = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, weight_decay=0.5)
    optimiser.state[parameter]["momentum_buffer"] = torch.tensor([1.0])
    torch.testing.assert_close(change_by(optimiser, [parameter], torch.tensor([2.0])), torch.tensor([-0.49]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_the_preview_of_a_first_step_in_any_precision(dtype, lr):
    """No state is there yet; in bfloat16 not even the rounding may differ, which is as large as the step."""
    parameter, gradient = nn.Parameter(draw(40).to(dtype)), draw(40, seed=1).to(dtype)
    optimiser = torch.optim.AdamW([parameter], lr=lr, weight_decay=0.1)
    found, before = change_by(optimiser, [parameter], gradient), parameter.detach().clone()
    parameter.grad = gradient.clone()
    optimiser.step()
    exact = {"rtol": 0, "atol": 0} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(found, parameter.detach() - before, **exact)


class Noisy(torch.optim.Optimizer):
    """Draws random numbers, writes into gradients and calls hooks."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter.grad.mul_(2)
            parameter.sub_(parameter.grad * torch.rand(()))


def test_a_preview_of_an_optimiser_that_draws_leaves_no_trace():
    parameter, gradient = nn.Parameter(torch.ones(3)), torch.ones(3)
    optimiser, called = Noisy([parameter]), []
    optimiser.register_step_pre_hook(lambda *args: called.append("before"))
    before = torch.random.get_rng_state()
    change = change_by(optimiser, [parameter], gradient)
    assert torch.equal(torch.random.get_rng_state(), before) and not called
    assert torch.equal(gradient, torch.ones(3)) and torch.equal(parameter, torch.ones(3)) and parameter.grad is None
    assert (change < 0).all()


def test_a_plain_step_is_that_of_gradient_descent_at_the_present_rates(used):
    """Each group has a rate of its own; momentum, decay and state of the optimiser have no part in it."""
    optimiser, (one, two, _) = used
    optimiser.param_groups[1]["lr"] *= 0.3
    gradient, before = [draw(*p.shape, seed=20) for p in (one, two)], copy.deepcopy(optimiser.state_dict())
    found = descent_by(optimiser, [one, two], torch.cat([value.flatten() for value in gradient]))
    assert repr(optimiser.state_dict()) == repr(before)
    twins = [p.detach().clone().requires_grad_() for p in (one, two)]
    rates = [group["lr"] for group in optimiser.param_groups]
    plain = torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in zip(twins, rates, strict=True)])
    for twin, value in zip(twins, gradient, strict=True):
        twin.grad = value
    plain.step()
    made = torch.cat([(t.detach() - p.detach()).flatten() for t, p in zip(twins, (one, two), strict=True)])
    torch.testing.assert_close(found, made, rtol=0, atol=1e-6)
    assert rates[0] != rates[1] and found.abs().min() > 1e-4

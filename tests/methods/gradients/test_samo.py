"""SAMO: golden, signs, rows at perturbed points, the wrapped rule at ρ = 0, and what leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mtlbench.errors import MethodError
from mtlbench.method.forward import loss_sums
from mtlbench.methods.gradients.samo import _evaluating, perturbation
from mtlbench.testing import check_method, difference, toy_spec, trained
from tests.support.architectures import TASKS, images, made
from tests.support.balancers import rows


def batch(count=3):
    torch.manual_seed(5)
    targets = {
        "depth": torch.rand(count, 1, 16, 24).double() + 0.5,
        "normals": torch.nn.functional.normalize(torch.randn(count, 3, 16, 24).double(), dim=1),
        "kind": torch.arange(count) % TASKS["kind"].channels,
    }
    counts = {name: TASKS[name].count(target) for name, target in targets.items()}
    return {"image": images(count), "targets": targets, "counts": counts}


def test_golden():
    one = torch.ones(())
    (found,) = perturbation([rows(3.0, 4.0)], [rows(0.0, 2.0)], one, rho=0.1, beta=0.5)
    assert_close(found, rows(0.031623, 0.094868), atol=1e-6, rtol=0)
    (other,) = perturbation([rows(3.0, 4.0)], [rows(0.0, 2.0)], -one, rho=0.1, beta=0.5)
    assert_close(other, 0.1 * rows(1.5, -0.5) / rows(1.5, -0.5).norm())


def test_the_length_is_that_of_all_tensors_and_each_has_its_own_scale():
    gradient, noise = [rows(3.0, 4.0), rows(12.0)], [rows(0.0, 7.0), rows(-0.1)]
    found = perturbation(gradient, noise, torch.ones(()), rho=0.2, beta=0.25)
    joint = [0.75 * rows(3.0, 4.0) + 0.25 * rows(0.0, 5.0), 0.75 * rows(12.0) - 0.25 * rows(12.0)]
    size = torch.cat(joint).norm()
    assert_close(found, [0.2 * j / size for j in joint])
    shared = [perturbation(gradient, [z * s for z in noise], torch.ones(()), rho=0.2, beta=0.0) for s in (1, -3)]
    assert_close(shared[0], shared[1]), "without β all tasks have one ε"
    for zero in ([rows(0.0, 0.0)], [rows(3.0, 4.0)]):
        (found,) = perturbation(zero, [rows(0.0, 0.0)], torch.ones(()), rho=0.1, beta=1.0)
        assert_close(found, rows(0.0, 0.0))


def test_rows_are_gradients_at_the_points_of_their_tasks():
    """Against the network itself with its parameters moved by hand."""
    method = made("samo", rho=0.3, mu=0.05).double()
    found, names, data = method.rank_losses(batch()), list(TASKS), batch()
    shared, heads = method._gradients(super(type(method), method).rank_losses(data), data)
    signs = method._signs(data)
    assert signs.abs().tolist() == [1.0, 1.0, 1.0]
    for i, name in enumerate(names):
        places = [*method.surgery.shared, *method.surgery.owned[i]]
        step = perturbation(shared, method._noise(i), signs[i], rho=0.3, beta=0.5)
        head = perturbation(heads[i], heads[i], signs[i], rho=0.3, beta=0.0)
        assert_close(torch.cat([h.flatten() for h in head]).norm(), torch.tensor(0.3).double())
        values = [p.detach().clone() for p in places]
        with torch.no_grad():
            for p, change in zip(places, [*step, *head], strict=True):
                p.add_(change)
        (there,) = loss_sums(method.network, TASKS, data, [name])
        wanted = torch.autograd.grad(there, places)
        with torch.no_grad():
            for p, value in zip(places, values, strict=True):
                p.copy_(value)
        assert_close(found.sums[i], there)
        assert_close(torch.autograd.grad(found.sums[i], places, retain_graph=True), wanted)


def test_noise_is_a_function_of_step_and_task():
    method = made("samo")
    one, again, other = method._noise(0), method._noise(0), method._noise(1)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])
    method._state.step = 1
    assert not torch.equal(one[0], method._noise(0)[0])


def test_batch_norm_moves_once_and_modes_come_back():
    method, plain = made("samo", "cnn"), made("kd_mtl", "cnn")
    data = {**batch(), "targets": {k: v.float() if v.is_floating_point() else v for k, v in batch()["targets"].items()}}
    method.network.encoder.eval()
    method.rank_losses(data)
    assert not method.network.encoder.training and method.network.neck.training
    method.network.train(), plain.network.train()
    method.load_state_dict(plain.state_dict(), strict=False)
    method.rank_losses(data), plain.network(data["image"], list(TASKS))
    buffers = dict(plain.network.named_buffers())
    assert all(torch.equal(value, buffers[name]) for name, value in method.network.named_buffers())
    with pytest.raises(ZeroDivisionError), _evaluating(method.network):
        1 / 0  # noqa: B018
    assert method.network.training


@pytest.mark.parametrize("balancer", [None, "cagrad"])
def test_without_a_radius_it_is_the_wrapped_rule(balancer, tmp_path):
    one = trained(toy_spec(balancer or "uniform", steps=4), str(tmp_path / "one"))
    two = trained(toy_spec("samo", steps=4, balancer=balancer, arguments={"rho": 0.0}), str(tmp_path / "two"))
    far = trained(toy_spec("samo", steps=4, balancer=balancer, arguments={"rho": 0.1}), str(tmp_path / "far"))
    assert difference(one, two) < 1e-9 < 1e-4 < difference(one, far)


def test_it_keeps_the_contract_around_a_gradient_rule(pool):
    findings = check_method("samo", pool, balancer="mgda")
    assert [f.detail for f in findings if not f.ok] == []


def test_a_rule_on_the_representation_is_refused(tmp_path):
    with pytest.raises(MethodError, match="names none"):
        trained(toy_spec("samo", steps=2, balancer="mgda_ub"), str(tmp_path))


def test_arguments_out_of_range():
    for name, value in (("rho", -1.0), ("beta", 1.5), ("mu", 0.0)):
        with pytest.raises(MethodError, match=f"samo: {name} must"):
            made("samo", **{name: value})

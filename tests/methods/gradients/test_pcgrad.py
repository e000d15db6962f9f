"""PCGrad: goldens, order, agreement with the vector form and with TorchJD, and averaging before surgery."""

from __future__ import annotations

import pytest
import torch
import torchjd.aggregation
from torch import distributed
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.gradients.surgery import Surgery, blend, collect, reduce, write
from tests.support.balancers import CONFLICT, ORTHOGONAL, context, draws, gramian_of, rows

THREE = ((1.0, 0.0), (-1.0, 1.0), (-1.0, -2.0))


def by_vectors(gradients, orders):
    """The rule as the paper writes it: row i goes through the others in the order given."""
    total = torch.zeros_like(gradients[0])
    for i, order in enumerate(orders):
        own = gradients[i].clone()
        for j in order:
            dot = own @ gradients[j]
            if dot < 0 and gradients[j] @ gradients[j] > 0:
                own -= dot / (gradients[j] @ gradients[j]) * gradients[j]
        total += own
    return total


def test_two_tasks_in_conflict():
    rule = make_balancer("pcgrad")
    assert_close(rule.weights(gramian_of(rows(*CONFLICT))), rows(2.0, 1.5))
    assert_close(rule.direction(rows(*CONFLICT)), rows(0.5, 1.5))


def test_no_conflict_is_the_sum():
    assert_close(make_balancer("pcgrad").direction(rows(*ORTHOGONAL)), rows(1.0, 2.0))


def test_three_tasks_depend_on_the_order():
    gradients = rows(*THREE)
    for order, expected in (((1, 2), (0.2, -0.1)), ((2, 1), (0.2, 0.2))):
        own = by_vectors(gradients, [order, [], []]) - gradients[1] - gradients[2]
        assert_close(own, rows(*expected))
    # Every draw of the rule is the sum for some order of each row, and different draws occur.
    both = [[(1, 2), (2, 1)], [(0, 2), (2, 0)], [(0, 1), (1, 0)]]
    possible = torch.stack([by_vectors(gradients, (a, b, c)) for a in both[0] for b in both[1] for c in both[2]])
    drawn = torch.stack([make_balancer("pcgrad").direction(gradients, seed=seed) for seed in range(40)])
    distance = (drawn[:, None] - possible).abs().amax(-1)  # (draws, orders)
    assert (distance.amin(1) < 1e-12).all()
    assert len(torch.unique(drawn.round(decimals=9), dim=0)) > 1


def test_two_tasks_never_descend_against_each_other():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        gradients = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        assert (gradients @ make_balancer("pcgrad").direction(gradients) >= -1e-12).all()


@pytest.mark.parametrize("seed", range(5))
def test_it_is_torchjd_under_the_same_seed(seed):
    gradients = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ours = make_balancer("pcgrad").direction(gradients, seed=seed)
    # The rule takes one number from the step's generator and seeds the global one with it.
    drawn = int(torch.randint(2**62, (), generator=draws(seed)))
    with torch.random.fork_rng():
        torch.manual_seed(drawn)
        assert_close(ours, torchjd.aggregation.PCGrad()(gradients), atol=1e-10, rtol=1e-10)


def test_the_gramian_is_all_it_needs():
    gradients = torch.randn(3, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rule = make_balancer("pcgrad")
    turned = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(2)).double()).Q
    weights = rule.weights(gradients @ gradients.T, seed=3, step=7)
    assert_close(rule.direction(gradients, seed=3, step=7), weights @ gradients, atol=1e-10, rtol=0)
    found = rule.direction(gradients @ turned, seed=3, step=7)
    assert_close(found, weights @ gradients @ turned, atol=1e-10, rtol=0)


def test_draws_come_from_the_context_alone():
    gradients, rule = rows(*THREE), make_balancer("pcgrad")
    gramian = gramian_of(gradients)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    found = [rule.gradient_weights(gramian, context(torch.ones(3), seed=seed)) for seed in (5, 5)]
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left alone"
    torch.manual_seed(2)
    found.append(rule.gradient_weights(gramian, context(torch.ones(3), seed=5)))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_zero_and_equal_rows():
    rule = make_balancer("pcgrad")
    assert_close(rule.direction(torch.zeros(3, 2)), torch.zeros(2))
    assert_close(rule.direction(rows((1.0, 0.0), (0.0, 0.0), (-1.0, 1.0))), rows(0.5, 1.5))
    assert_close(rule.direction(rows((1.0, 2.0), (1.0, 2.0))), rows(2.0, 4.0))
    assert_close(rule.direction(rows((1.0, 2.0), (-1.0, -2.0))), rows(0.0, 0.0))
    assert_close(rule.direction(rows([3.0, -4.0])), rows(3.0, -4.0))


def test_two_tasks_may_change_places():
    gradients = rows(*CONFLICT)
    rule = make_balancer("pcgrad")
    assert_close(rule.weights(gramian_of(gradients.flip(0))), rule.weights(gramian_of(gradients)).flip(0))


# ---- over ranks -----------------------------------------------------------------------------------------------------


def on_a_rank(average_first):
    """Combines this rank's rows; returns the direction that `.grad` holds in the end."""
    rank = distributed.get_rank()
    shared, head = torch.nn.Parameter(torch.zeros(2).double()), torch.nn.Parameter(torch.zeros(1).double())
    surgery = Surgery([shared], [[head], []])
    local = rows((1.0, 0.0), (-1.0, 1.0)) if rank == 0 else rows((1.0, 0.0), (1.0, 1.0))
    losses = {0: (local[0] * shared).sum() + (2.0 + rank) * head.sum(), 1: (local[1] * shared).sum()}
    rule = make_balancer("pcgrad")
    if average_first:
        reduced = reduce(surgery, collect(surgery, losses, None, torch.ones(())), 1.0)
        weights = rule.weights(reduced.gramian((0, 1)))
        write(reduced, blend(reduced, weights.tolist(), (0, 1)), (0, 1))
        return shared.grad, head.grad
    direction = rule.direction(local)
    distributed.all_reduce(direction)
    return direction / 2, None


def test_ranks_average_before_surgery(pool):
    for shared, head in pool.call(on_a_rank, True):
        assert_close(shared, rows(1.0, 1.0))
        assert_close(head, rows(2.5))
    # What surgery on every rank would give: the check above can tell.
    for shared, _ in pool.call(on_a_rank, False):
        assert_close(shared, rows(1.25, 1.25))

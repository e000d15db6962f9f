"""A reference of Gradient Vaccine as the paper writes it: every row is corrected by the others one by one."""

from __future__ import annotations

import torch


def by_vectors(gradients, targets, beta, orders):
    """Returns the sum of the corrected gradients (P,); moves the targets (T, T) in place.

    Args:
        gradients: (T, P).
        targets: (T, T).
        beta: Step of the targets.
        orders: For each task the others, in order.
    """
    total = torch.zeros_like(gradients[0])
    for i, order in enumerate(orders):
        own = gradients[i].clone()
        for j in order:
            other, lengths = gradients[j], own.norm() * gradients[j].norm()
            if own.norm() <= 1e-6 * gradients[i].norm() or other.norm() == 0:
                continue
            found = float((own @ other / lengths).clamp(-1, 1))
            target = float(targets[i, j])
            aim = min(target, 1 - 1e-6)
            if found < aim:
                numerator = own.norm() * (aim * (1 - found**2) ** 0.5 - found * (1 - aim**2) ** 0.5)
                own = own + numerator / (other.norm() * (1 - aim**2) ** 0.5) * other
            targets[i, j] = (1 - beta) * target + beta * found
        total += own
    return total

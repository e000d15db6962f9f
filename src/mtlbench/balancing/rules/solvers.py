"""Exact solvers for rules on the Gramian, in NumPy and float64, for two to about forty tasks.

M = G Gᵀ is the Gramian (T, T) of gradients g_i. The solvers work with gradients of unit length, for which M is the
matrix of cosines, so that norms that differ by many orders of magnitude cost no digits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, lsq_linear, nnls

Array = NDArray[np.float64]

DOUBLE = float(np.finfo(np.float64).eps)
"""Default for the relative rounding error ε of the gradients. A Gramian squares the condition number: if gradients are
rounded to ε, a combination shorter than about √ε of their length cannot be distinguished from zero."""

STATIONARY = 1e-4
"""Share of Σ w_i ‖g_i‖ above which `conflict_averse` may divide by ‖Σ w_i g_i‖."""


def lengths(gramian: Array) -> Array:
    """Returns the norms ‖g_i‖ (T,)."""
    return np.sqrt(np.maximum(gramian.diagonal(), 0))


def min_norm(gramian: Array) -> Array:
    """Returns the w (T,) ≥ 0 with Σ w = 1 that minimises ‖Σ w_i g_i‖; any one of them if there are several.

    Example:
        >>> min_norm(np.array([[1.0, -1.0], [-1.0, 2.0]])).round(9).tolist()
        [0.6, 0.4]
    """
    if len(gramian) > 2:
        return _nearest(_points(gramian))
    if len(gramian) == 1:
        return np.ones(1)
    # For two gradients, w_1 is proportional to ‖g_2‖² - ⟨g_1, g_2⟩ and vice versa, clipped at the ends of the segment.
    shares = np.maximum(gramian.diagonal()[::-1] - gramian[0, 1], 0.0)
    return shares / shares.sum() if shares.any() else np.full(2, 0.5)


def regularised(gramian: Array, reg: float) -> Array:
    """Returns M / trace M + reg · I, or reg · I if M is zero.

    Example:
        >>> regularised(np.diag([1.0, 3.0]), 0.5).tolist()
        [[0.75, 0.0], [0.0, 1.25]]
    """
    return gramian / (gramian.trace() or 1.0) + reg * np.eye(len(gramian))


def dual_cone(gramian: Array, preferences: Array) -> Array:
    """Returns for each row u (T,) ≥ 0 of ``preferences`` the v (T,) ≥ u that minimises vᵀMv.

    Σ v_i g_i is the projection of Σ u_i g_i onto the cone of directions d with all ⟨g_i, d⟩ ≥ 0.

    Example:
        >>> dual_cone(np.array([[1.0, -1.0], [-1.0, 2.0]]), np.diag([0.5, 0.5])).round(9).tolist()
        [[0.5, 0.25], [0.5, 0.5]]
    """
    # Multipliers are needed only where u conflicts with some gradient.
    lacking = np.maximum(0, -preferences @ gramian)
    if len(gramian) <= 2:  # At most one product is negative, because uᵀMu is not.
        return preferences + lacking / _positive(gramian.diagonal())
    found, points, scale = preferences.copy(), _points(gramian), _positive(lengths(gramian))
    for row in np.flatnonzero(lacking.any(1)):
        found[row] += _nonnegative(points / scale, -points @ preferences[row]) / scale
    return found


def conflict_averse(gramian: Array, c: float, precision: float = DOUBLE) -> Array:
    """Returns weights (T,) ≥ 0 of the d with ‖d - ḡ‖ ≤ c ‖ḡ‖ that maximises min_i ⟨g_i, d⟩; ḡ is the mean gradient.

    The solution is d = ḡ + s · g_w / ‖g_w‖ with s = c ‖ḡ‖ and g_w = Σ w_i g_i, where w on the simplex minimises
    ⟨ḡ, g_w⟩ + s ‖g_w‖. Near stationarity g_w is nearly zero and rounding destroys its direction. In that case
    `_best_in_ball` searches for d itself and `_small_weights` expresses it by weights. If several d are optimal up to
    rounding, the one closest to ḡ is returned. Zero gradients affect ḡ only. If independent unit gradients have a
    combination of length σ, d may exceed the ball by about ε / σ² of its radius, the accuracy of a Gramian.

    Args:
        gramian: (T, T).
        c: Radius of the ball, at least 0.
        precision: Relative rounding ε of the gradients.

    Example:
        >>> conflict_averse(np.array([[1.0, -1.0], [-1.0, 2.0]]), 0.5).round(9).tolist()
        [0.75, 0.5]
    """
    mean = np.full(len(gramian), 1 / len(gramian))
    radius, norms = c * _length(gramian, mean), lengths(gramian)
    some = np.flatnonzero(norms)
    if radius == 0:
        return mean
    points, worst = _points(gramian), np.zeros_like(mean)
    if len(some) == 2:
        worst[some] = _worst_pair(gramian[np.ix_(some, some)], (gramian @ mean)[some], radius)
    else:
        worst[some] = _worst(points[:, some], points @ mean, radius)
    # The dual solution is accurate while g_w is clearly longer than the rounding errors of its terms.
    length = _length(gramian, worst)
    if length > max(STATIONARY, 30 * precision**0.5) * (worst @ norms):
        return mean + radius / length * worst
    weights = mean.copy()
    best = _best_in_ball(points[:, some], points @ mean, radius, precision)
    weights[some] = _small_weights(points[:, some], best, precision)
    # Rounding may have left the ball, so the step from ḡ is shortened to the radius.
    change = weights - mean
    return mean + change * min(1.0, radius / (float(np.linalg.norm(points @ change)) or radius))


def best_in_cone(gramian: Array, c: float, precision: float = DOUBLE) -> Array:
    """Returns weights (T,) of the d with ‖d‖ = ‖ḡ‖ and cos(ḡ, d) ≥ c that maximises min_i ⟨g_i, d⟩; ḡ is the mean.

    If the shortest convex combination of the gradients lies in the cone, d is parallel to it. Otherwise d lies on the
    boundary, d / ‖d‖ = c ḡ / ‖ḡ‖ + √(1 - c²) u with u orthogonal to ḡ. If no direction in the cone gains more than
    rounding errors for every task, d is ḡ.

    Args:
        gramian: (T, T).
        c: Least cosine, in [0, 1].
        precision: Relative rounding ε of the gradients.

    Example:
        >>> best_in_cone(np.array([[1.0, -1.0], [-1.0, 2.0]]), 0.9).round(6).tolist()
        [0.667945, 0.45]
    """
    mean = np.full(len(gramian), 1 / len(gramian))
    length, norms = _length(gramian, mean), lengths(gramian)
    least = max(STATIONARY, 30 * precision**0.5) * norms.min()
    if c == 1 or least == 0 or length <= least:
        return mean
    shortest = min_norm(gramian)
    size = _length(gramian, shortest)
    if size <= least:  # No direction at all gains more for every task.
        return mean
    if mean @ gramian @ shortest >= c * length * size:
        return length / size * shortest
    found = _on_the_boundary(gramian, mean, length, c, precision)
    gain = float((gramian @ found).min()) / length
    return found if gain > least else mean


def alpha_fair(gramian: Array, alpha: float, precision: float = DOUBLE) -> Array:
    """Returns the w (T,) > 0 with M w = w^(-1/α), which minimises a convex function; 0 for zero gradients.

    A gradient counts as zero if it is shorter than 1e-12 times the longest. If some convex combination of the gradients
    is zero, no solution exists. Eigenvalues of the cosines are then raised to `ridge`, which bounds the weights.

    Args:
        gramian: (T, T).
        alpha: α, above 0.
        precision: Relative rounding ε of the gradients.

    Example:
        >>> alpha_fair(np.diag([1.0, 4.0]), 2.0).round(5).tolist()
        [1.0, 0.39685]
    """
    norms = lengths(gramian)
    some = np.flatnonzero(norms > 1e-12 * norms.max(initial=0.0))
    weights = np.zeros_like(norms)
    if len(some):
        power, unit, scale = 1 / alpha, norms.max(), norms[some] / norms.max()
        cosines = gramian[np.ix_(some, some)] / np.outer(norms[some], norms[some])
        solved = _fair(cosines, scale ** (power - 1), power, ridge(precision))
        weights[some] = solved / scale * unit ** (-2 / (1 + power))
    return weights


def ridge(precision: float) -> float:
    """Returns the smallest eigenvalue of cosines that `alpha_fair` uses: 1e-8 in float64, about 1e-6 in float32."""
    return max(1e-8, 8 * precision)


# ---- Private functions ----------------------------------------------------------------------------------------------


def _positive(values: Array) -> Array:
    return np.where(values > 0, values, 1.0)


def _length(gramian: Array, weights: Array) -> float:
    return float(np.sqrt(np.maximum(weights @ gramian @ weights, 0.0)))


def _pair(share: float) -> Array:
    share = min(max(share, 0.0), 1.0)
    return np.array([share, 1 - share])


def _points(gramian: Array) -> Array:
    """Returns columns (T, T) with this Gramian, after removing directions that consist of rounding errors."""
    norms = lengths(gramian)
    scale = _positive(norms)
    values, vectors = np.linalg.eigh(gramian / np.outer(scale, scale))
    values[values <= len(values) * np.finfo(float).eps * values[-1]] = 0.0
    return np.sqrt(values)[:, None] * vectors.T * norms


def _nonnegative(matrix: Array, target: Array) -> Array:
    """Returns the x ≥ 0 that minimises ‖matrix x - target‖, found by an active-set method."""
    try:
        return nnls(matrix, target, maxiter=100 * matrix.shape[1])[0]
    except RuntimeError:  # The active set may cycle among linearly dependent columns.
        return lsq_linear(matrix, target, (0, np.inf)).x


def _nearest(points: Array) -> Array:
    """Returns the simplex weights (T,) of the point nearest to the origin in the convex hull of columns (K, T).

    They are a multiple of the x ≥ 0 that minimises ‖Σ x_i p_i‖² + (1 - Σ x)².
    """
    norms = np.linalg.norm(points, axis=0)
    zero = norms == 0
    if zero.any():
        return zero / zero.sum()
    matrix = np.vstack([points / norms, norms.min() / norms])
    weights = _nonnegative(matrix, np.eye(1, len(matrix), len(matrix) - 1)[0]) / norms
    return weights / weights.sum()


def _worst(points: Array, mean: Array, radius: float) -> Array:
    """Returns the w on the simplex that minimises ⟨ḡ, g_w⟩ + s ‖g_w‖ for columns g_i (K, T), ḡ (K,), s the radius.

    The same w minimises ‖g_w + τ ḡ‖ for the unique τ with ‖g_w‖ = s τ. As ‖g_w‖ / τ falls when τ grows, τ is found
    by a root search, on a logarithmic scale because gradients may differ by many orders of magnitude.
    """
    norms = np.linalg.norm(points, axis=0)

    def mix(tau: float) -> Array:
        return _nearest(points + tau * mean[:, None])

    def excess(log_tau: float) -> float:
        tau = np.exp(log_tau)
        return float(np.log(max(np.linalg.norm(points @ mix(tau)), 1e-300) / (radius * tau)))

    smallest = max(float(np.linalg.norm(points @ mix(0.0))), 0.1 * STATIONARY * norms.min())
    low, high = np.log(smallest / radius), np.log(1.01 * norms.max() / radius)
    return mix(np.exp(brentq(excess, low, high) if excess(low) > 0 else low))


def _worst_pair(gramian: Array, products: Array, radius: float) -> Array:
    """Returns the result of `_worst` for two gradients in closed form; ``products`` are ⟨ḡ, g_i⟩."""
    apart = gramian[0, 0] + gramian[1, 1] - 2 * gramian[0, 1]
    if apart <= 0:  # Equal gradients: every w gives the same g_w.
        return _pair(0.5)
    slope = (products[1] - products[0]) / (radius * np.sqrt(apart))
    if abs(slope) >= 1:  # The derivative has no root, so the minimum is at an end of the segment.
        return _pair(slope)
    area = max(gramian[0, 0] * gramian[1, 1] - gramian[0, 1] ** 2, 0.0)
    return _pair((slope * np.sqrt(area / (1 - slope**2)) + gramian[1, 1] - gramian[0, 1]) / apart)


def _on_the_boundary(gramian: Array, mean: Array, length: float, c: float, precision: float) -> Array:
    """Returns weights (T,) of the best d on the boundary of the cone, of length ‖ḡ‖."""
    along = gramian @ mean / length  # ⟨g_i, ḡ⟩ / ‖ḡ‖
    across = gramian - np.outer(along, along)  # Gramian of the parts g_i⊥ orthogonal to ḡ
    points, radius = _points(across), float(np.sqrt(1 - c**2))
    norms = np.linalg.norm(points, axis=0)
    some = norms > 0
    units = points[:, some] / norms[some]

    def turn(gain: float) -> tuple[Array, float]:
        """Returns the shortest u with ⟨g_i, d⟩ ≥ gain for all i, and 1 / (1 + ‖u‖²)."""
        return _least_change(units, (gain - c * along[some]) / (radius * norms[some]))

    low, high = float((c * along).min()), float((c * along + radius * norms).min())
    best = high
    if turn(high)[1] < 0.5:  # ‖u‖ would be above 1.
        best = brentq(lambda gain: turn(gain)[1] - 0.5, low, high, xtol=0.1 * DOUBLE * norms.max(), rtol=4 * DOUBLE)
    u = turn(best)[0]
    shares = np.zeros_like(mean)
    size = float(np.linalg.norm(u))
    if size > 0:
        shares[some] = _small_weights(points[:, some], u / size, precision)
    # Σ shares_i g_i⊥ = u and g_i⊥ = g_i - along_i ḡ / ‖ḡ‖.
    return length * (radius * shares + (c - radius * shares @ along) / length * mean)


def _best_in_ball(points: Array, mean: Array, radius: float, precision: float) -> Array:
    """Returns the d (K,) of `conflict_averse` for columns g_i (K, T) and ḡ (K,), without a division by ‖g_w‖.

    `_least_change` returns the shortest step from ḡ to a point where every ⟨g_i, d⟩ ≥ t. The step grows with t, so the
    optimum is the largest t that the ball allows. The final step may miss t by the rounding error; otherwise noise
    would choose between equally good directions.
    """
    norms, products = np.linalg.norm(points, axis=0), mean @ points
    units = points / norms

    def change(t: float, slack: float = 0.0) -> tuple[Array, float]:
        return _least_change(units, ((t - products) / norms - slack) / radius)

    low, high = products.min(), (products + radius * norms).min()
    # change[1] is 1 / (1 + ‖change‖²): one half on the boundary of the ball, 0 if no d has ⟨g_i, d⟩ ≥ t for all i.
    size = float(np.linalg.norm(mean))
    if change(high)[1] < 0.5 and change(low)[1] > 0.5:
        finest = 0.1 * DOUBLE * size * norms.min()
        high = brentq(lambda t: change(t)[1] - 0.5, low, high, xtol=finest, rtol=4 * DOUBLE, maxiter=400)
    found = change(high, 8 * len(norms) * precision * size)[0]
    return mean + radius * found / max(1.0, float(np.linalg.norm(found)))


def _least_change(units: Array, bounds: Array) -> tuple[Array, float]:
    """Returns the shortest x (K,) with ⟨u_i, x⟩ ≥ bounds_i for columns u_i (K, T), and 1 / (1 + ‖x‖²).

    The second value is 0 if no such x exists. The method is least distance programming (Lawson and Hanson, Solving
    least squares problems, 1974, chapter 23): the residual of one non-negative least-squares problem is a multiple of
    (x, -1).
    """
    matrix = np.vstack([units, bounds])
    target = np.eye(1, len(matrix), len(matrix) - 1)[0]
    found = _nonnegative(matrix, target)
    residual = matrix @ found - target
    # Nearly opposite columns have large multiples that cancel. Projecting the target off the columns avoids them.
    basis = np.linalg.qr(matrix[:, found > 0])[0]
    exact = basis @ (basis.T @ target) - target
    if np.linalg.norm(exact - residual) < 1e-3:
        residual = exact
    share = float(np.clip(-residual[-1], 0.0, 1.0))
    return residual[:-1] / max(share, 1e-300), share


def _small_weights(points: Array, direction: Array, precision: float) -> Array:
    """Returns w (T,) ≥ 0 with Σ w_i p_i = ``direction`` (K,) for columns (K, T), as small as possible in w_i ‖p_i‖.

    A ridge of ε^0.6 keeps w_i ‖p_i‖ below about 10⁴ times the direction in float32 and 10⁹ in float64. Larger weights
    would leave only rounding errors when the gradients are added.
    """
    norms = np.linalg.norm(points, axis=0)
    matrix = np.vstack([points / norms, precision**0.6 * np.eye(len(norms))])
    return _nonnegative(matrix, np.append(direction, np.zeros(len(norms)))) / norms


def _fair(cosines: Array, factors: Array, power: float, least: float) -> Array:
    """Returns the y > 0 with C y = factors · y^(-power) for a positive semi-definite C with unit diagonal.

    Eigenvalues of C below ``least`` are raised to it.
    """
    start = (factors / len(factors)) ** (1 / (1 + power))
    values, vectors = np.linalg.eigh(cosines)
    if values[0] >= least:
        return _newton(cosines, factors, power, start)
    raised = (vectors * np.maximum(values, least)) @ vectors.T
    first = _newton(raised, factors, power, start)
    # One proximal step from there removes the ridge to second order if a solution exists.
    excess = (vectors * (np.maximum(values, least) - np.maximum(values, 0))) @ vectors.T
    return _newton(raised, factors, power, first, excess @ first)


def _newton(matrix: Array, factors: Array, power: float, y: Array, offset: Array | float = 0.0) -> Array:
    """Returns the y > 0 with matrix · y = factors · y^(-power) + offset, found by damped Newton steps from ``y``.

    A line search is not needed: the curvature changes little while no y_i shrinks by more than ``share`` of itself, and
    it falls when y_i grows.
    """
    share = 0.5 / (1 + power)
    for _ in range(500):
        pull = factors * y**-power
        step = np.linalg.solve(matrix + np.diag(power * pull / y), pull + offset - matrix @ y)
        relative = step / y
        y = y + step * min(1.0, share / max(-relative.min(), share))
        if np.abs(relative).max() < 1e-7:
            break
    return y

"""Geometry of the canonical solids: where rays enter them, their normals and faces, and how far they reach.

Rays are held component first, (3, Q). A ray is ``origin + t * direction``; directions need not have unit length.
Affine maps keep ``t``, so every solid is intersected in its own frame, where it is canonical.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .scene import Array, Kind, Solid

FACES = 6
"""More than the face ids of any solid."""

_TINY = np.float32(1e-9)


def enter(kind: Kind, origin: Array, direction: Array, length: Array) -> Array:
    """Returns where rays enter a canonical solid: t, (Q,), infinite for a miss.

    Args:
        kind: Shape.
        origin: (3, Q).
        direction: (3, Q).
        length: (Q,) half length of a capsule's segment in radii; unused by the other shapes.
    """
    if kind == Kind.PLANE:
        # Planes have one side; a ray from below never enters.
        return np.where(direction[1] < 0, -origin[1] / np.minimum(direction[1], -_TINY), np.float32(np.inf))
    # From the point nearest to the centre: far origins would cost float32 the digits of the discriminant.
    start = -_dot(origin, direction) / _dot(direction, direction)
    return start + _ENTER[kind](origin + start * direction, direction, length)


def _dot(a: Array, b: Array) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _roots(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Returns the roots of a t² + 2 b t + c, smaller first; (inf, -inf) where there are none."""
    discriminant = b * b - a * c
    root = np.sqrt(np.maximum(discriminant, 0))
    a = np.where(np.abs(a) < _TINY, _TINY, a)
    first, second = (-b - root) / a, (root - b) / a
    miss = discriminant < 0
    infinity = np.float32(np.inf)
    return (
        np.where(miss, infinity, np.minimum(first, second)),
        np.where(miss, -infinity, np.maximum(first, second)),
    )


def _slab(origin: Array, direction: Array) -> tuple[Array, Array]:
    """Returns where one coordinate enters and leaves [-1, 1]."""
    inverse = 1 / np.where(np.abs(direction) < _TINY, _TINY, direction)
    middle, half = -origin * inverse, np.abs(inverse)
    return middle - half, middle + half


def _nonempty(lower: Array, upper: Array) -> Array:
    return np.where(lower <= upper, lower, np.float32(np.inf))


def _sphere(o: Array, d: Array, length: Array) -> Array:
    return _roots(_dot(d, d), _dot(o, d), _dot(o, o) - 1)[0]


def _box(o: Array, d: Array, length: Array) -> Array:
    lower, upper = _slab(o, d)
    return _nonempty(lower.max(0), upper.min(0))


def _cylinder(o: Array, d: Array, length: Array) -> Array:
    side, slab = _tube(o, d), _slab(o[1], d[1])
    return _nonempty(np.maximum(side[0], slab[0]), np.minimum(side[1], slab[1]))


def _tube(o: Array, d: Array) -> tuple[Array, Array]:
    """Returns where rays enter and leave the infinite cylinder of radius 1 about the y axis."""
    return _roots(d[0] ** 2 + d[2] ** 2, o[0] * d[0] + o[2] * d[2], o[0] ** 2 + o[2] ** 2 - 1)


def _cone(o: Array, d: Array, length: Array) -> Array:
    below, fall = (1 - o[1]) / 2, -d[1] / 2
    a = d[0] ** 2 + d[2] ** 2 - fall**2
    near, far = _roots(a, o[0] * d[0] + o[2] * d[2] - below * fall, o[0] ** 2 + o[2] ** 2 - below**2)
    # A ray steeper than the side (a < 0) runs in the lower nappe before one root or after the other.
    infinity = np.float32(np.inf)
    inside = np.where(near <= far, infinity, -infinity)
    lower = np.where(a > 0, near, np.where(fall > 0, far, -inside))
    upper = np.where(a > 0, far, np.where(fall > 0, inside, near))
    slab = _slab(o[1], d[1])
    return _nonempty(np.maximum(lower, slab[0]), np.minimum(upper, slab[1]))


def _capsule(o: Array, d: Array, length: Array) -> Array:
    side, slab = _tube(o, d), _slab(o[1] / length, d[1] / length)
    best = _nonempty(np.maximum(side[0], slab[0]), np.minimum(side[1], slab[1]))
    for end in (-length, length):
        best = np.minimum(best, _sphere(np.stack((o[0], o[1] - end, o[2])), d, length))
    return best


_ENTER = {
    Kind.SPHERE: _sphere, Kind.BOX: _box, Kind.CYLINDER: _cylinder, Kind.CONE: _cone, Kind.CAPSULE: _capsule,
}  # fmt: skip


def normal(kind: Kind, point: Array, length: Array) -> tuple[Array, NDArray[np.intp]]:
    """Returns the outward normal and the face at points on a canonical solid.

    Args:
        kind: Shape.
        point: (3, Q), on the surface.
        length: (Q,), see `enter`.

    Returns:
        Normals in the local frame, (3, Q), of any length, and face ids, (Q,), in [0, `FACES`).
    """
    x, y, z = point
    zero, face = np.zeros_like(x), np.zeros(x.shape, np.intp)
    if kind == Kind.PLANE:
        return np.stack((zero, zero + 1, zero)), face
    if kind == Kind.SPHERE:
        return point, face
    if kind == Kind.CAPSULE:
        return np.stack((x, y - np.clip(y, -length, length), z)), face
    if kind == Kind.BOX:
        axis = np.abs(point).argmax(0)
        across = np.sign(np.take_along_axis(point, axis[None], 0))
        return (axis == np.arange(3)[:, None]) * across, 2 * axis + (across[0] > 0)
    radius = np.hypot(x, z)
    if kind == Kind.CYLINDER:
        cap = np.abs(y) > radius
        return np.where(cap, np.stack((zero, y, zero)), np.stack((x, zero, z))), cap * (1 + (y > 0))
    cap = 1 + y < (1 - y) / 2 - radius
    return np.where(cap, np.stack((zero, zero - 1, zero)), np.stack((x, (1 - y) / 4, z))), cap * 1


def reach(solid: Solid, direction: Array) -> float:
    """Returns how far a solid extends from its centre along a unit vector in its thing's frame, metres."""
    x, y, z = (float(component) for component in solid.rotation.T @ direction)
    a, b, c = (float(extent) for extent in solid.size)
    if solid.kind == Kind.BOX:
        return abs(x) * a + abs(y) * b + abs(z) * c
    if solid.kind == Kind.SPHERE:
        return math.hypot(x * a, y * b, z * c)
    if solid.kind == Kind.CAPSULE:
        return abs(y) * b + a
    rim = math.hypot(x * a, z * c)
    return abs(y) * b + rim if solid.kind == Kind.CYLINDER else max(y * b, rim - y * b)


def bound(solid: Solid) -> float:
    """Returns the radius of a sphere about the centre that holds the solid, metres; infinite for planes."""
    a, b, c = (float(extent) for extent in solid.size)
    if solid.kind == Kind.PLANE:
        return math.inf
    if solid.kind == Kind.SPHERE:
        return max(a, b, c)
    if solid.kind == Kind.CAPSULE:
        return a + b
    return math.hypot(a, b, c) if solid.kind == Kind.BOX else math.hypot(max(a, c), b)

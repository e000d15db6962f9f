"""Ray casting: one ray a pixel through its centre, and one shadow ray a point that faces the lamp.

All geometry is in the camera frame. A primary ray has direction (x, y, -1), so its parameter t *is* the z-depth.
Rays are tried only against solids whose bounding spheres they meet, which one matrix product finds out for all pairs
of a solid and a ray; the pairs that remain are intersected kind by kind, in flat arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .scene import FAR, Array, Camera, Kind, Material, Scene
from .solids import bound, enter, normal

Ints = NDArray[np.intp]

_BIAS = np.float32(2e-3)
"""Metres between a surface and the start of its shadow ray."""

_SLACK = np.float32(1e-3)
"""What bounding tests grant to rounding, metres (or square metres)."""


class Table(NamedTuple):
    """The P solids of a scene as arrays, sorted by kind, in the camera frame."""

    kind: Ints
    centre: Array  # (P, 3)
    scale: Array  # (P, 3) from the canonical solid to metres
    to_local: Array  # (P, 3, 3) camera to canonical
    length: Array  # (P,) half length of a capsule's segment in radii
    bound: Array  # (P,) radius of the bounding sphere
    thing: Ints
    label: Ints
    part: Ints
    materials: list[Material]


class Hits(NamedTuple):
    """The Q pixels that show a surface."""

    pixel: Ints
    solid: Ints
    face: Ints
    depth: Array  # (Q,)
    point: Array  # (3, Q) in the camera frame
    local: Array  # (3, Q) in the canonical frame
    normal: Array  # (3, Q)


class _Pairs(NamedTuple):
    """Solids and rays that were intersected, sorted by solid."""

    solid: Ints
    ray: Ints
    start: Array  # (3, Q) canonical frame
    heading: Array  # (3, Q) canonical frame
    t: Array  # (Q,), infinite for a miss


def tabulate(scene: Scene) -> Table:
    """Returns the solids of a scene as arrays in the frame of its camera."""
    entries = sorted(
        ((solid, number) for number, thing in enumerate(scene.things) for solid in thing.solids),
        key=lambda entry: entry[0].kind,
    )
    solids, thing = [solid for solid, _ in entries], np.array([number for _, number in entries])
    view = scene.camera.rotation.T
    turns = (view @ np.stack([entry.rotation for entry in scene.things]))[thing]
    places = ((np.stack([entry.position for entry in scene.things]) - scene.camera.position) @ view.T)[thing]
    kind, size = np.array([solid.kind for solid in solids]), np.stack([solid.size for solid in solids])
    # A capsule is scaled by its radius alone; its length stays a parameter.
    scale = np.where((kind == Kind.CAPSULE)[:, None], size[:, :1], size)
    return Table(
        kind=kind,
        centre=places + np.einsum("pij,pj->pi", turns, np.stack([solid.centre for solid in solids])),
        scale=scale,
        to_local=(turns @ np.stack([solid.rotation for solid in solids])).transpose(0, 2, 1) / scale[:, :, None],
        length=size[:, 1] / scale[:, 0],
        bound=np.array([bound(solid) for solid in solids], np.float32),
        thing=thing,
        label=np.array([entry.label for entry in scene.things])[thing],
        part=np.array([solid.part for solid in solids]),
        materials=[solid.material for solid in solids],
    )


def rays(camera: Camera, height: int, width: int) -> Array:
    """Returns the directions through the pixel centres, (3, H * W), z = -1."""
    focal = camera.focal(height, width)
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / focal
    y = (height / 2 - 0.5 - np.arange(height, dtype=np.float32)) / focal
    return np.stack((np.tile(x, height), np.repeat(y, width), np.full(height * width, -1, np.float32)))


def unit(vectors: Array) -> Array:
    """Returns vectors, (3, Q), at length 1."""
    return vectors / np.sqrt((vectors * vectors).sum(0))


def visible(table: Table, directions: Array) -> Hits:
    """Returns the nearest surface along every ray from the camera, (3, M), that meets one within `FAR`."""
    # A ray meets a sphere if the sphere's centre is far enough along it, by Pythagoras. Planes are always tried.
    beyond = np.maximum((table.centre**2).sum(1) - table.bound**2, 0)
    needed = np.where(np.isinf(table.bound), -np.inf, np.sqrt(beyond) - _SLACK).astype(np.float32)
    near = table.centre @ unit(directions) >= needed[:, None]
    pairs = _trace(table, near, np.zeros((3, 1), np.float32), directions)
    t = np.where((pairs.t > 0) & (pairs.t < FAR), pairs.t, np.float32(np.inf))
    nearest = np.full(directions.shape[1], np.inf, np.float32)
    np.minimum.at(nearest, pairs.ray, t)
    first = np.flatnonzero((t == nearest[pairs.ray]) & (t < np.inf))
    winner = np.full(directions.shape[1], -1)
    winner[pairs.ray[first]] = first
    pixel = np.flatnonzero(winner >= 0)
    return _surface(table, pairs, pixel, winner[pixel], directions[:, pixel])


def shadowed(table: Table, hits: Hits, lamp: Array, facing: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns which points the lamp does not reach, (Q,), among those that face it; the others count as reached.

    Planes cast no shadow: the stage is open to the lamp.

    Args:
        table: Solids.
        hits: Points.
        lamp: (3,) unit vector towards the lamp, camera frame.
        facing: (Q,) which points face the lamp.
    """
    points = np.flatnonzero(facing)
    start = hits.point[:, points] + _BIAS * hits.normal[:, points]
    # Seen from the lamp, solids are discs: |centre - point|² <= radius² in the plane across the light.
    discs = table.centre - (table.centre @ lamp)[:, None] * lamp
    flat = start - (lamp @ start) * lamp[:, None]
    radius = np.where(table.kind == Kind.PLANE, -np.inf, table.bound**2 + _SLACK)
    limit = (0.5 * (radius - (discs**2).sum(1))).astype(np.float32)
    near = 0.5 * (flat * flat).sum(0) - discs @ flat <= limit[:, None]
    # A convex solid does not shade its own lit side.
    near[hits.solid[points], np.arange(len(points))] = False
    pairs = _trace(table, near, start, lamp[:, None])
    dark = np.zeros(len(facing), bool)
    dark[points[pairs.ray[(pairs.t > 0) & (pairs.t < np.inf)]]] = True
    return dark


def _trace(table: Table, near: NDArray[np.bool_], origin: Array, direction: Array) -> _Pairs:
    """Intersects rays with the solids that they may meet.

    Args:
        table: Solids.
        near: (P, M), the pairs of solid and ray to try.
        origin: (3, M) or (3, 1).
        direction: (3, M) or (3, 1).
    """
    count = near.shape[1]
    chosen = np.flatnonzero(near)
    solid = np.repeat(np.arange(len(near)), np.count_nonzero(near, axis=1))
    ray = chosen - solid * count
    axes = table.to_local.transpose(1, 0, 2)

    def local(vectors: Array) -> Array:
        # One matrix product for all pairs, of which the chosen are picked.
        turned = (axes.reshape(-1, 3) @ vectors).reshape(3, -1)
        return turned.take(chosen if vectors.shape[1] == count else solid, 1)

    centre = np.einsum("ipj,pj->ip", axes, table.centre)
    start, heading, length = local(origin) - centre.take(solid, 1), local(direction), table.length[solid]
    t = np.empty(len(solid), np.float32)
    ends = np.searchsorted(table.kind[solid], np.arange(len(Kind) + 1))
    for kind in Kind:
        some = slice(ends[kind], ends[kind + 1])
        t[some] = enter(kind, start[:, some], heading[:, some], length[some])
    return _Pairs(solid, ray, start, heading, t)


def _surface(table: Table, pairs: _Pairs, pixel: Ints, winner: Ints, directions: Array) -> Hits:
    """Returns the geometry of the pairs that won a pixel."""
    solid, depth = pairs.solid[winner], pairs.t[winner]
    local = pairs.start.take(winner, 1) + depth * pairs.heading.take(winner, 1)
    gradient, face = np.zeros_like(local), np.zeros_like(solid)
    for kind in Kind:
        mine = np.flatnonzero(table.kind[solid] == kind)
        gradient[:, mine], face[mine] = normal(kind, local[:, mine], table.length[solid[mine]])
    outward = unit(np.einsum("qji,jq->iq", table.to_local[solid], gradient))
    return Hits(pixel, solid, face, depth, directions * depth, local, outward)

"""Draws scenes: which things there are, where they stand, who looks at them and in which light."""

from __future__ import annotations

import math

import numpy as np

from .bodies import CLOTHES, figure
from .materials import material, skin, tint
from .palette import recolour
from .scene import (
    BACKGROUND,
    GROUND,
    SEMSEG_CLASSES,
    Array,
    Camera,
    Kind,
    Light,
    Scene,
    Solid,
    Thing,
    rotation,
    vector,
)
from .solids import bound, reach

MIN_SOLIDS = 20
"""Every scene has at least this many solids, planes included."""

_SPOTS = 24
"""Random spots that are tried for a thing."""

_PEOPLE_SHARE = (0.1, 0.5, 0.3, 0.1)
_SINGLES = (Kind.SPHERE, Kind.BOX, Kind.CYLINDER, Kind.CONE, Kind.CAPSULE)
_UP = vector(0, 1, 0)


def describe(seed: int, index: int, typical: float = 0.0) -> Scene:
    """Returns the scene of an index: a function of its arguments alone.

    Args:
        seed: Seed of the data set, >= 0.
        index: Scene of that data set, >= 0.
        typical: Share of things in the typical colours of their class, see `palette`. It changes colours only.

    Raises:
        ValueError: If ``seed`` or ``index`` is negative.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"Seed and index must not be negative: ({seed}, {index}).")
    generator = np.random.default_rng((seed, index))
    camera = _camera(generator)
    stage = _Stage(generator, camera)
    for _ in range(generator.choice(4, p=_PEOPLE_SHARE)):
        stage.add_person()
    for _ in range(generator.choice(2, p=(0.6, 0.4))):
        stage.add_compound(_table(generator))
    for _ in range(generator.choice(3, p=(0.45, 0.4, 0.15))):
        stage.add_compound(_tree(generator))
    while stage.solids < MIN_SOLIDS:
        stage.add_single()
    for _ in range(generator.integers(3, 9)):
        stage.add_single()
    scene = Scene(tuple(stage.things), camera, _light(generator))
    return recolour(scene, typical, np.random.default_rng((seed, index, 3))) if typical else scene


def _camera(generator: np.random.Generator) -> Camera:
    height, aim, distance, roll, view = generator.uniform(
        (0.8, 0.6, 2.6, -0.1, math.radians(44)), (1.8, 1.0, 3.6, 0.1, math.radians(58))
    )
    turn = rotation(pitch=math.atan2(aim - height, distance)) @ rotation(roll=roll)
    exposure, noise = generator.uniform((0.18, 0.008), (0.36, 0.03))
    return Camera(vector(0, height, 0), turn, float(view), float(exposure), float(noise))


def _light(generator: np.random.Generator) -> Light:
    # Mostly from behind or beside the camera; the lamp is never so low that shadows cover everything.
    azimuth, elevation = generator.uniform((-2.0, 0.5), (2.0, 1.25))
    lamp, sky = generator.uniform((1.3, 0.3), (2.2, 0.65))
    direction = rotation(azimuth, -elevation) @ vector(0, 0, 1)
    horizon, zenith = tint(generator, 0.35) * np.float32(0.8), tint(generator, 0.6) * np.float32(0.7)
    return Light(
        direction, tint(generator, 0.25) * np.float32(lamp), tint(generator, 0.25) * np.float32(sky), horizon, zenith
    )


class _Stage:
    """The things placed so far. Each keeps a disc of the ground to itself, as far as there is room."""

    def __init__(self, generator: np.random.Generator, camera: Camera):
        self.generator, self.camera = generator, camera
        self.things: list[Thing] = []
        self.discs: list[tuple[float, float, float]] = []
        self.walls: list[tuple[Array, Array]] = []
        self._plane(GROUND, vector(0, 0, 0), rotation())
        self._walls()

    @property
    def solids(self) -> int:
        """Solids placed so far."""
        return sum(len(thing.solids) for thing in self.things)

    def add_person(self) -> None:
        """Adds a figure; at least half of them face the camera roughly."""
        clothes = {cloth: skin(self.generator) if cloth == "skin" else material(self.generator) for cloth in CLOTHES}
        yaw = float(self.generator.normal(0, 0.7) if self.generator.random() < 0.5 else self.generator.uniform(-3, 3))
        self._place(figure(self.generator, clothes, vector(0, 0, 0), yaw), 1.2, 2.6)

    def add_compound(self, solids: tuple[int, tuple[Solid, ...]]) -> None:
        """Adds a thing made of several solids whose frame stands on the ground."""
        self._place(Thing(*solids, vector(0, 0, 0), rotation(float(self.generator.uniform(-3, 3)))), 2.0, 4.5)

    def add_single(self) -> None:
        """Adds a single solid, mostly resting on the ground, upright or tumbled, sometimes suspended in the air."""
        kind = _SINGLES[self.generator.integers(len(_SINGLES))]
        extents = self.generator.uniform(0.18, 0.5, 3)
        if kind in (Kind.CYLINDER, Kind.CONE, Kind.CAPSULE):
            extents[2] = extents[0] = extents[0] * 0.8
        elif kind == Kind.SPHERE and self.generator.random() < 0.7:
            extents[:] = extents[0]
        turn = (
            rotation(*self.generator.uniform(-3, 3, 3))
            if self.generator.random() < 0.35
            else rotation(float(self.generator.uniform(-3, 3)))
        )
        body = Solid(kind, vector(0, 0, 0), rotation(), extents.astype(np.float32), material(self.generator))
        height = reach(Solid(kind, body.centre, turn, body.size, body.material), -_UP)
        if self.generator.random() < 0.15:
            height += float(self.generator.uniform(0.3, 1.6))
        label = SEMSEG_CLASSES.index(kind.name.lower())
        self._place(Thing(label, (body,), vector(0, height, 0), turn), 1.8, 5.0)

    def _place(self, thing: Thing, near: float, far: float) -> None:
        """Adds a thing in view between two distances: at the first free of some random spots, else at the roomiest."""
        radius = max(float(np.hypot(*(thing.rotation @ s.centre)[[0, 2]])) + 0.85 * bound(s) for s in thing.solids)
        if len(thing.solids) > 1:
            radius = min(radius, 0.6)
        best, roomiest = vector(0, 0, -far), -math.inf
        for share, aside in self.generator.random((_SPOTS, 2)):
            distance = near + (far - near) * share + radius
            half = distance * math.tan(0.5 * self.camera.field_of_view)
            spot = vector((2 * aside - 1) * half, 0, -distance)
            room = self._room(spot) - radius
            if room > roomiest:
                best, roomiest = spot, room
            if room > 0:
                break
        self.discs.append((float(best[0]), float(best[2]), radius))
        self.things.append(Thing(thing.label, thing.solids, thing.position + best, thing.rotation, thing.joints))

    def _room(self, spot: Array) -> float:
        """Returns the distance from a spot to the nearest thing or wall, metres; negative inside."""
        x, _, z = spot.tolist()
        room = min((math.hypot(x - cx, z - cz) - radius for cx, cz, radius in self.discs), default=math.inf)
        return min([room, *(float(normal @ (spot - point)) for point, normal in self.walls)])

    def _walls(self) -> None:
        """Encloses the stage: nothing, a back wall, or a corner."""
        count = self.generator.choice(3, p=(0.3, 0.35, 0.35))
        depth, turn, aside = self.generator.uniform((6.5, -0.5, 3.0), (9.5, 0.5, 4.5))
        side = 1 if self.generator.random() < 0.5 else -1
        upright = rotation(pitch=math.pi / 2)
        back, flank = rotation(turn) @ upright, rotation(turn - side * math.pi / 2) @ upright
        for point, turned in ((vector(0, 0, -depth), back), (vector(side * aside, 0, 0), flank))[:count]:
            self.walls.append((point, turned[:, 1]))
            self._plane(BACKGROUND, point, turned)

    def _plane(self, label: int, point: Array, turned: Array) -> None:
        surface = Solid(Kind.PLANE, vector(0, 0, 0), rotation(), vector(1, 1, 1), material(self.generator))
        self.things.append(Thing(label, (surface,), point, turned))


def _table(generator: np.random.Generator) -> tuple[int, tuple[Solid, ...]]:
    """Returns the class and solids of a table: a top and four legs, square or round."""
    width, depth, height, leg = generator.uniform((0.35, 0.28, 0.45, 0.03), (0.6, 0.45, 0.9, 0.055))
    wood = material(generator)
    frame = material(generator) if generator.random() < 0.5 else wood
    kind = Kind.CYLINDER if generator.random() < 0.5 else Kind.BOX
    top = Solid(Kind.BOX, vector(0, height, 0), rotation(), vector(width, 0.04, depth), wood)
    legs = (
        Solid(
            kind,
            vector(x * (width - leg), height / 2, z * (depth - leg)),
            rotation(),
            vector(leg, height / 2, leg),
            frame,
        )
        for x in (-1, 1)
        for z in (-1, 1)
    )
    return SEMSEG_CLASSES.index("table"), (top, *legs)


def _tree(generator: np.random.Generator) -> tuple[int, tuple[Solid, ...]]:
    """Returns the class and solids of a tree: a trunk, and a crown of cones or of balls."""
    trunk, radius, crown = generator.uniform((0.3, 0.05, 0.28), (0.7, 0.1, 0.45))
    bark, leaves = material(generator), material(generator)
    stem = Solid(Kind.CYLINDER, vector(0, trunk, 0), rotation(), vector(radius, trunk, radius), bark)
    if generator.random() < 0.5:
        heights, shrink, kind, flat = (1.0, 1.7), 0.75, Kind.CONE, 1.1
    else:
        heights, shrink, kind, flat = (0.9, 1.75), 0.8, Kind.SPHERE, 0.85
    tiers = (
        Solid(
            kind,
            vector(0, 2 * trunk + (height - 0.5) * crown, 0),
            rotation(),
            vector(crown, crown * flat, crown) * np.float32(shrink**tier),
            leaves,
        )
        for tier, height in enumerate(heights)
    )
    return SEMSEG_CLASSES.index("tree"), (stem, *tiers)

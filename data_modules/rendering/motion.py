"""Scenes in motion: a camera that dollies, pans or orbits, things that slide and spin, people who swing their limbs.

A clip is a function of (seed, index, frame) alone. Frame 0 is the still image of the scene, and a short clip is the
beginning of a longer one. Whatever moves follows a wave: it starts in motion, never jerks, and stays on the stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from .layout import describe
from .renderer import Rendered, shoot
from .scene import (
    BACKGROUND,
    GROUND,
    PERSON,
    Array,
    Camera,
    Scene,
    Solid,
    Thing,
    rotation,
    vector,
)
from .solids import reach

ORBITED = 3.5
"""Metres between the camera and the upright axis that it orbits."""

_TRUNK, _LIMB = 5, 3
"""Solids of a figure's trunk and of each limb: figures hold trunk, left leg, left arm, right leg, right arm."""

_LIMBS = (("left", "hip", 1), ("left", "shoulder", -1), ("right", "hip", -1), ("right", "shoulder", 1))
_FOLLOWERS = {"hip": ("knee", "ankle", "toe"), "shoulder": ("elbow", "wrist")}
_STILL = (BACKGROUND, GROUND)
_UP = vector(0, 1, 0)


@dataclass(frozen=True)
class Wave:
    """A smooth, bounded path that starts at 0.

    Attributes:
        size: Half of the way from end to end, metres or radians.
        rate: Radians of the wave per frame.
        phase: Where on the wave frame 0 lies, radians.
    """

    size: float
    rate: float
    phase: float

    def __call__(self, frame: int) -> float:
        """Returns the offset at a frame."""
        return self.size * (math.sin(self.phase + self.rate * frame) - math.sin(self.phase))


@dataclass(frozen=True)
class CameraPath:
    """How a camera moves: it turns about an upright axis ahead (orbit) or through itself (pan), and goes forward.

    Attributes:
        turn: Angle, radians.
        forward: Metres.
        axis: Metres from the camera to the axis.
    """

    turn: Wave
    forward: Wave
    axis: float

    def __call__(self, camera: Camera, frame: int) -> Camera:
        """Returns the camera at a frame."""
        turn, pivot = rotation(self.turn(frame)), vector(0, 0, -self.axis)
        place = pivot + turn @ (camera.position - pivot) - vector(0, 0, self.forward(frame))
        return replace(camera, position=place, rotation=turn @ camera.rotation)


@dataclass(frozen=True)
class ThingPath:
    """How a thing moves on the ground.

    Attributes:
        heading: (3,) level unit vector.
        slide: Metres along the heading.
        spin: Turn about the vertical through the thing, radians.
        swing: Angle of the limbs, radians; None for things without any.
    """

    heading: Array
    slide: Wave
    spin: Wave
    swing: Wave | None = None

    def __call__(self, thing: Thing, frame: int) -> Thing:
        """Returns the thing at a frame."""
        if self.swing is not None:
            thing = swung(thing, self.swing(frame))
        place = thing.position + self.heading * np.float32(self.slide(frame))
        return replace(thing, position=place, rotation=rotation(self.spin(frame)) @ thing.rotation)


def film(seed: int, indices: Sequence[int], frames: int, height: int, width: int, typical: float = 0.0) -> Rendered:
    """Returns the clips of (seed, index) for every index, frame by frame: N = len(indices) * frames images.

    Args:
        seed: Seed of the data set, >= 0.
        indices: Which scenes, each >= 0; not empty.
        frames: Frames of every clip, >= 1.
        height: Rows, >= 8.
        width: Columns, >= 8.
        typical: Share of things in the typical colours of their class, 0 to 1.

    Raises:
        ValueError: If an argument is out of range.
    """
    if not len(indices) or frames < 1 or min(height, width) < 8:
        raise ValueError(
            f"Give at least one index, one frame and 8 x 8 pixels: {len(indices)} indices, {frames} frames, "
            f"{height} x {width}."
        )
    shots = [
        shoot(scene, height, width, np.random.default_rng((seed, i, 1, t) if t else (seed, i, 1)))
        for i in indices
        for t, scene in enumerate(moving(seed, i, frames, typical))
    ]
    return Rendered(**{f.name: np.stack([getattr(shot, f.name) for shot in shots]) for f in fields(Rendered)})


def moving(seed: int, index: int, frames: int, typical: float = 0.0) -> Iterator[Scene]:
    """Yields a scene frame by frame, the first as `describe` returns it; the order of the things never changes.

    Raises:
        ValueError: If ``seed`` or ``index`` is negative.
    """
    scene = describe(seed, index, typical)
    generator = np.random.default_rng((seed, index, 2))
    camera = _camera_path(generator)
    paths = [_thing_path(generator, thing) for thing in scene.things]
    yield scene
    for frame in range(1, frames):
        things = (path(thing, frame) if path else thing for path, thing in zip(paths, scene.things, strict=True))
        yield Scene(tuple(things), camera(scene.camera, frame), scene.light)


def _wave(generator: np.random.Generator, size: float, period: float) -> Wave:
    """Draws a wave of at most some size, either way, and of about some period in frames."""
    share, pace, phase, side = generator.uniform((0.5, 0.8, -0.8, -1), (1, 1.25, 0.8, 1))
    return Wave(math.copysign(size * share, side), math.tau * pace / period, phase)


def _camera_path(generator: np.random.Generator) -> CameraPath:
    kind = generator.choice(3)
    turn, forward = _wave(generator, (0.0, 0.2, 0.2)[kind], 48), _wave(generator, (0.3, 0.0, 0.0)[kind], 36)
    return CameraPath(turn, forward, (0.0, 0.0, ORBITED)[kind])


def _thing_path(generator: np.random.Generator, thing: Thing) -> ThingPath | None:
    """Draws how a thing moves: most people, some other things; never the ground and the walls."""
    chance, angle = generator.random(), generator.uniform(-math.pi, math.pi)
    slide, spin, swing = _wave(generator, 0.3, 32), _wave(generator, 0.6, 32), _wave(generator, 0.35, 12)
    if thing.label in _STILL or chance > (0.8 if thing.label == PERSON else 0.4):
        return None
    if thing.label == PERSON:
        # Forwards and back; the trunk keeps its heading.
        return ThingPath(thing.rotation[:, 2], slide, replace(spin, size=0.2 * spin.size), swing)
    return ThingPath(rotation(float(angle))[:, 2], slide, spin)


def swung(person: Thing, angle: float) -> Thing:
    """Returns a figure whose limbs are turned about hips and shoulders, still standing on the ground.

    Args:
        person: As made by `figures.figure`.
        angle: Radians; the left leg and the right arm go forwards, the others back.
    """
    solids, joints = list(person.solids), dict(person.joints)
    for number, (side, root, way) in enumerate(_LIMBS):
        turn, pivot = rotation(pitch=-way * angle), joints[f"{side}_{root}"]
        first = _TRUNK + _LIMB * number
        for i in range(first, first + _LIMB):
            place = pivot + turn @ (solids[i].centre - pivot)
            solids[i] = replace(solids[i], centre=place, rotation=turn @ solids[i].rotation)
        for name in _FOLLOWERS[root]:
            joints[f"{side}_{name}"] = pivot + turn @ (joints[f"{side}_{name}"] - pivot)
    rise = np.float32(_below(solids) - _below(person.solids))
    return replace(person, solids=tuple(solids), joints=joints, position=person.position + _UP * rise)


def _below(solids: Sequence[Solid]) -> float:
    """Returns how far solids reach below the origin of their frame, metres."""
    return max(reach(solid, -_UP) - float(solid.centre[1]) for solid in solids)

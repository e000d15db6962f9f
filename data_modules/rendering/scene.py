"""What a scene is: solids, the things they form, camera and light. Data only; nothing here draws or renders.

World frame: x right, y up, z backwards (right-handed), metres, origin on the ground below the camera. The camera
frame has the same axes, turned with the camera: it looks along its -z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
"""Numbers are float32 wherever there are many of them."""

SEMSEG_CLASSES = (
    "background", "ground", "sphere", "box", "cylinder", "cone", "capsule", "table", "tree", "person",
)  # fmt: skip
"""Class names; ids are positions. Walls and sky are background."""

PART_CLASSES = ("background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs")
"""Body parts of persons, as in PASCAL: hands count as lower arms, feet as lower legs."""

_SIDED = tuple(f"{side}_{name}" for side in ("left", "right") for name in (
    "hip", "knee", "ankle", "toe", "shoulder", "elbow", "wrist",
))  # fmt: skip

JOINTS = ("pelvis", "neck", "head", *_SIDED)
"""Names of the joints of a person, in the order in which they are labelled."""

BACKGROUND, GROUND, PERSON = (SEMSEG_CLASSES.index(name) for name in ("background", "ground", "person"))

THING_CLASSES = SEMSEG_CLASSES[2:]
"""Classes of what has a box: all but background and ground, which come first."""

MOST_THINGS, MOST_PERSONS = 32, 4
"""At least as many as any scene has."""

FAR = 16.0
"""Metres of z-depth beyond which surfaces are lost in the haze and count as sky."""


class Kind(IntEnum):
    """Canonical shapes, in the local frame of a solid before its half extents scale it.

    PLANE is y = 0 seen from above; SPHERE has radius 1; BOX, CYLINDER and CONE fill [-1, 1]³ with axis y (the cone's
    apex is up); CAPSULE has radius 1 around a segment of the y axis.
    """

    PLANE = 0
    SPHERE = 1
    BOX = 2
    CYLINDER = 3
    CONE = 4
    CAPSULE = 5


class Texture(IntEnum):
    """Patterns that mix the two colours of a material."""

    PLAIN = 0
    STRIPES = 1
    CHECKER = 2
    BLOTCHES = 3


@dataclass(frozen=True)
class Material:
    """Reflectance of a surface.

    Attributes:
        texture: How the two colours mix.
        colours: (2, 3) linear RGB in [0, 1].
        wave: (3,) wave vector of the pattern, radians per metre, in the solid's frame.
        phase: Phase of the pattern, radians.
        gloss: Strength of the highlight, 0 to 1.
    """

    texture: Texture
    colours: Array
    wave: Array
    phase: float
    gloss: float


@dataclass(frozen=True)
class Solid:
    """One convex primitive.

    Attributes:
        kind: Canonical shape.
        centre: (3,) metres, in the frame of its thing.
        rotation: (3, 3) from the solid's frame to its thing's.
        size: (3,) half extents in metres. Of a capsule: radius, half length of the segment, radius.
        material: Surface.
        part: Body part id, 0 outside persons.
    """

    kind: Kind
    centre: Array
    rotation: Array
    size: Array
    material: Material
    part: int = 0


@dataclass(frozen=True)
class Thing:
    """One object: what has one label, one instance id and one pose.

    Attributes:
        label: Class id in `SEMSEG_CLASSES`.
        solids: Its primitives, in its own frame.
        position: (3,) metres, world.
        rotation: (3, 3) from its frame to the world.
        joints: Named points in its own frame, (3,) metres each; empty for rigid things.
    """

    label: int
    solids: tuple[Solid, ...]
    position: Array
    rotation: Array
    joints: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with a little sensor noise.

    Attributes:
        position: (3,) metres, world.
        rotation: (3, 3) from the camera frame to the world.
        field_of_view: Angle seen by the shorter side of the image, radians.
        exposure: Mean of the exposed linear image, 0 to 1.
        noise: Standard deviation of the sensor noise, as a share of white.
    """

    position: Array
    rotation: Array
    field_of_view: float
    exposure: float
    noise: float

    def focal(self, height: int, width: int) -> float:
        """Returns the focal length in pixels; the principal point is the middle of the image."""
        return 0.5 * min(height, width) / math.tan(0.5 * self.field_of_view)


@dataclass(frozen=True)
class Light:
    """A distant lamp and the light of the sky.

    Attributes:
        direction: (3,) unit vector towards the lamp, world.
        colour: (3,) linear RGB of the lamp.
        ambient: (3,) linear RGB of the sky light.
        horizon: (3,) linear RGB of the haze.
        zenith: (3,) linear RGB of the sky overhead.
    """

    direction: Array
    colour: Array
    ambient: Array
    horizon: Array
    zenith: Array


@dataclass(frozen=True)
class Scene:
    """Everything that an image shows. The instance id of a thing is its position in ``things`` plus one."""

    things: tuple[Thing, ...]
    camera: Camera
    light: Light


def vector(x: float, y: float, z: float) -> Array:
    """Returns a float32 (3,) vector."""
    return np.array((x, y, z), np.float32)


def rotation(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Array:
    """Returns Ry(yaw) @ Rx(pitch) @ Rz(roll), (3, 3): angles in radians, counter-clockwise about +y, +x and +z."""
    cy, sy, cx, sx, cz, sz = *_cos_sin(yaw), *_cos_sin(pitch), *_cos_sin(roll)
    return np.array(
        (
            (cy * cz + sy * sx * sz, sy * sx * cz - cy * sz, sy * cx),
            (cx * sz, cx * cz, -sx),
            (cy * sx * sz - sy * cz, sy * sz + cy * sx * cz, cy * cx),
        ),
        np.float32,
    )


def _cos_sin(angle: float) -> tuple[float, float]:
    return math.cos(angle), math.sin(angle)

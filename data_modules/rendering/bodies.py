"""Articulated figures: a body of capsules and ellipsoids posed by joint angles."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .scene import PERSON, Array, Kind, Material, Solid, Thing, rotation, vector
from .solids import reach

HEAD, TORSO, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG = range(1, 7)

CLOTHES = ("skin", "hair", "shirt", "trousers", "shoes")

# Degrees (low, high) for: torso lean; then per side hip flexion, leg spread, knee, shoulder flexion, arm spread, elbow.
_POSES = (
    ((-3, 6), (-10, 12), (1, 9), (0, 12), (-25, 30), (6, 25), (0, 45)),  # stand
    ((0, 12), (-35, 45), (0, 7), (5, 50), (-50, 50), (5, 25), (20, 90)),  # walk
    ((-8, 15), (-12, 25), (4, 22), (0, 25), (-30, 150), (10, 100), (0, 110)),  # gesture
    ((10, 30), (75, 100), (5, 25), (85, 115), (0, 90), (5, 30), (0, 60)),  # crouch
)
_POSE_SHARE = (0.35, 0.25, 0.28, 0.12)


def figure(generator: np.random.Generator, clothes: Mapping[str, Material], position: Array, yaw: float) -> Thing:
    """Returns a person in a random pose with the lowest point on the ground; with yaw 0 it faces +z.

    Args:
        generator: Source of stature, build and pose.
        clothes: A material for each of `CLOTHES`.
        position: (3,) metres: the ground below the pelvis.
        yaw: Heading, radians.
    """
    stature, build = float(generator.uniform(1.45, 1.9)), float(generator.uniform(1.0, 1.4))
    pose = np.array(_POSES[generator.choice(len(_POSES), p=_POSE_SHARE)], np.float32)
    angles = np.radians(generator.uniform(pose[:, 0], pose[:, 1], (2, len(pose))))
    body = _Body(stature, build, clothes)
    body.trunk(float(angles[0, 0]), *(float(angle) for angle in generator.uniform(-0.4, 0.4, 2)))
    for side, name, limbs in ((1, "left", angles[0]), (-1, "right", angles[1])):
        body.leg(side, name, *(float(angle) for angle in limbs[1:4]))
        body.arm(side, name, *(float(angle) for angle in limbs[4:7]))
    return body.standing(position, yaw)


class _Body:
    """Collects solids and joints; lengths are shares of the stature, the pelvis is the origin while building."""

    def __init__(self, stature: float, build: float, clothes: Mapping[str, Material]):
        self.stature, self.build, self.clothes = stature, build, clothes
        self.solids: list[Solid] = []
        self.joints: dict[str, Array] = {"pelvis": vector(0, 0, 0)}
        self.torso = rotation()

    def trunk(self, lean: float, turn: float, nod: float) -> None:
        """Adds pelvis, chest, neck, head and hair; the head turns and nods against the torso (radians)."""
        self.torso = rotation(pitch=lean)
        skull = self.torso @ rotation(turn, nod * 0.6)
        self.joints["neck"] = neck = self._from("pelvis", self.torso, 0, 0.30, 0)
        self.joints["head"] = head = neck + self._offset(skull, 0, 0.105, 0.012)
        self._ellipsoid(self._from("pelvis", self.torso, 0, 0.03, 0), self.torso, (0.088, 0.08, 0.066), TORSO, "shirt")
        self._ellipsoid(self._from("pelvis", self.torso, 0, 0.175, 0), self.torso, (0.108, 0.15, 0.07), TORSO, "shirt")
        self._ellipsoid(neck + self._offset(skull, 0, 0.03, 0), skull, (0.032, 0.05, 0.032), HEAD, "skin")
        self._ellipsoid(head, skull, (0.052, 0.07, 0.06), HEAD, "skin")
        self._ellipsoid(head + self._offset(skull, 0, 0.014, -0.012), skull, (0.055, 0.064, 0.056), HEAD, "hair")

    def leg(self, side: int, name: str, flexion: float, spread: float, knee: float) -> None:
        """Adds thigh, shank and foot; angles in radians, 0 hangs straight."""
        hip = self._joint(f"{name}_hip", vector(0, 0, 0) + self._offset(self.torso, side * 0.055, 0, 0))
        thigh = rotation(pitch=-flexion, roll=side * spread)
        shank = thigh @ rotation(pitch=knee)
        bend = self._bone(hip, thigh, 0.245, 0.042, UPPER_LEG, "trousers", f"{name}_knee")
        ankle = self._bone(bend, shank, 0.235, 0.031, LOWER_LEG, "trousers", f"{name}_ankle")
        # The foot is level whatever the leg does; its bone points forwards.
        self._bone(ankle, rotation(pitch=-1.45), 0.085, 0.024, LOWER_LEG, "shoes", f"{name}_toe")

    def arm(self, side: int, name: str, flexion: float, spread: float, elbow: float) -> None:
        """Adds upper arm, forearm and hand; angles in radians, 0 hangs straight."""
        shoulder = self._joint(f"{name}_shoulder", self._from("pelvis", self.torso, side * 0.118, 0.275, 0))
        upper = self.torso @ rotation(pitch=-flexion, roll=side * spread)
        lower = upper @ rotation(pitch=-elbow)
        bend = self._bone(shoulder, upper, 0.17, 0.029, UPPER_ARM, "shirt", f"{name}_elbow")
        wrist = self._bone(bend, lower, 0.15, 0.023, LOWER_ARM, "skin", f"{name}_wrist")
        self._ellipsoid(wrist + self._offset(lower, 0, -0.03, 0), lower, (0.022, 0.045, 0.03), LOWER_ARM, "skin")

    def standing(self, position: Array, yaw: float) -> Thing:
        """Returns the body as a thing whose lowest point touches the ground."""
        up = vector(0, 1, 0)
        lift = up * max(reach(solid, -up) - float(solid.centre[1]) for solid in self.solids)
        pose = rotation(yaw)
        return Thing(PERSON, tuple(self.solids), position + lift, pose, self.joints)

    def _joint(self, name: str, point: Array) -> Array:
        self.joints[name] = point
        return point

    def _offset(self, frame: Array, x: float, y: float, z: float) -> Array:
        return frame @ vector(x, y, z) * np.float32(self.stature)

    def _from(self, joint: str, frame: Array, x: float, y: float, z: float) -> Array:
        return self.joints[joint] + self._offset(frame, x, y, z)

    def _ellipsoid(self, centre: Array, frame: Array, size: tuple[float, float, float], part: int, cloth: str) -> None:
        x, y, z = size
        extent = vector(x * self.build, y, z * self.build) * np.float32(self.stature)
        self.solids.append(Solid(Kind.SPHERE, centre, frame, extent, self.clothes[cloth], part))

    def _bone(self, start: Array, frame: Array, length: float, radius: float, part: int, cloth: str, end: str) -> Array:
        """Adds a capsule from a joint along -y of its frame; returns the joint at its other end."""
        stop = self._joint(end, start + self._offset(frame, 0, -length, 0))
        thick = radius * self.build
        size = vector(thick, length / 2, thick) * np.float32(self.stature)
        self.solids.append(Solid(Kind.CAPSULE, (start + stop) / 2, frame, size, self.clothes[cloth], part))
        return stop

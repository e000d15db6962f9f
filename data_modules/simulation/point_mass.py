"""A world of point masses in the plane: tasks with scripted experts, in a few floating-point operations per step.

Positions lie in the square from -1 to 1. The agent is a point with inertia; an action (2,) is the velocity it wants,
of length 1 at most. Square roots, sums and products alone make a step, so that every machine computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mtlbench.data.rollouts import Array

VERSION = 1
"""Increase it when a world, its initial states or its expert changes: it is part of the data's identity."""

SPEED = 0.08
"""Greatest distance per step."""

NEAR, STILL, CONTACT, OBSTACLE, GAP, ON_GOAL = 0.06, 0.01, 0.14, 0.2, 0.12, 0.1
"""Distance that counts as reached; speed that counts as standing still; distance at which the agent pushes the puck;
radius of the obstacle; half the width of the gate; distance from puck to goal that counts as reached."""

STEPS = 60
"""Steps that a rule may take; twice as many where the puck is pushed."""

Point = tuple[float, float]


def plus(a: Point, b: Point, factor: float = 1.0) -> Point:
    """Returns a + factor · b."""
    return a[0] + factor * b[0], a[1] + factor * b[1]


def length(a: Point) -> float:
    """Returns the length of a vector."""
    return math.sqrt(a[0] * a[0] + a[1] * a[1])


def distance(a: Point, b: Point) -> float:
    """Returns the distance between two points."""
    return length(plus(a, b, -1))


def along(a: Point, direction: Point) -> float:
    """Returns the component of a vector along a unit vector."""
    return a[0] * direction[0] + a[1] * direction[1]


def unit(a: Point) -> Point:
    """Returns a vector scaled to length 1; (1, 0) for the zero vector."""
    size = length(a)
    return (a[0] / size, a[1] / size) if size > 1e-9 else (1.0, 0.0)


def shortened(a: Point) -> Point:
    """Returns a vector, scaled to length 1 if it is longer."""
    return unit(a) if length(a) > 1 else a


class World:
    """One episode: a sequence of goals, each to be reached under a rule.

    An observation holds, in this order: position and velocity of the agent, the puck, the obstacle or gate, whether the
    puck was touched, and all goals; with room for several goals, also the share of goals reached so far, and on its own
    the goal of the next step, or zeros without ``following``.

    Args:
        rules: Names of `RULES`, one per goal.
        slots: Goals that an observation has room for.
        following: Whether the observation shows the goal of the next step on its own.
    """

    def __init__(self, rules: Sequence[str], *, slots: int = 1, following: bool = False):
        self.rules, self.slots, self.following = [RULES[name] for name in rules], slots, following
        self.horizon = sum(2 * STEPS if rule is Push else STEPS for rule in self.rules)
        self.position: Point = (0.0, 0.0)
        self.velocity: Point = (0.0, 0.0)
        self.puck: Point = (0.0, 0.0)
        self.mark: Point = (0.0, 0.0)
        self.goals: list[Point] = []
        self.reached, self.touched, self.failed = 0, False, False

    @property
    def goal(self) -> Point:
        """The goal of the next step; the last one at the end."""
        return self.goals[min(self.reached, len(self.goals) - 1)]

    @property
    def rule(self) -> type[Reach]:
        """The rule of the next step; the last one at the end."""
        return self.rules[min(self.reached, len(self.rules) - 1)]

    def reset(self, seed: int) -> Array:
        """Begins an episode; returns its first observation."""
        generator = np.random.default_rng(seed)
        self.velocity, self.mark, self.puck, self.goals = (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), []
        self.reached, self.touched, self.failed = 0, False, False
        self.position = draw(generator, 0.9)
        for rule in reversed(self.rules):  # The first rule has the last word on where agent and puck begin.
            rule.place(self, generator)
        return self.observation()

    def step(self, action: Array) -> tuple[Array, bool]:
        """Moves the agent; returns an observation and whether all goals are reached."""
        wanted = shortened((float(action[0]), float(action[1])))
        before = self.position
        self.velocity = plus((0.5 * self.velocity[0], 0.5 * self.velocity[1]), wanted, 0.5 * SPEED)
        x, y = plus(before, self.velocity)
        self.position = min(1.0, max(-1.0, x)), min(1.0, max(-1.0, y))
        self.rule.move(self, before)
        if not self.failed and self.reached < len(self.rules) and self.rule.solved(self):
            self.reached, self.touched = self.reached + 1, False
        return self.observation(), self.reached == len(self.rules)

    def expert(self) -> Array:
        """Returns the action that leads to where the rule aims."""
        miss = plus(plus(self.rule.aim(self), self.position, -1), self.velocity, -0.5)
        return np.array(shortened((miss[0] / SPEED, miss[1] / SPEED)))

    def observation(self) -> Array:
        """Returns what the agent sees, float64."""
        goals = [*self.goals, *[(0.0, 0.0)] * (self.slots - len(self.goals))]
        seen = [*self.position, self.velocity[0] / SPEED, self.velocity[1] / SPEED, *self.puck, *self.mark]
        seen += [float(self.touched), *(number for goal in goals for number in goal)]
        if self.slots > 1:
            seen += [self.reached / len(self.rules), *(self.goal if self.following else (0.0, 0.0))]
        return np.array(seen)


def draw(generator: np.random.Generator, size: float, far: Callable[[Point], bool] = lambda point: True) -> Point:
    """Draws a point within ``size`` of the middle that is far enough from others."""
    while True:
        x, y = generator.uniform(-size, size, 2)
        if far((float(x), float(y))):
            return float(x), float(y)


class Reach:
    """Go to the goal."""

    @classmethod
    def place(cls, world: World, generator: np.random.Generator) -> None:
        """Draws what the rule needs, and puts its goal before those drawn so far."""
        world.goals.insert(0, draw(generator, 0.9, lambda p: distance(p, world.position) > 0.5))

    @classmethod
    def move(cls, world: World, before: Point) -> None:
        """Applies what the rule does to the world after the agent has moved."""

    @classmethod
    def solved(cls, world: World) -> bool:
        """Returns whether the goal is reached."""
        return distance(world.position, world.goal) < NEAR

    @classmethod
    def aim(cls, world: World) -> Point:
        """Returns the point to which the expert goes."""
        return world.goal


class Mirror(Reach):
    """Go to the point opposite the goal, which conflicts with `Reach`."""

    @classmethod
    def place(cls, world: World, generator: np.random.Generator) -> None:
        """Draws a goal whose opposite is far from the agent."""
        away = draw(generator, 0.9, lambda p: distance(p, world.position) > 0.5)
        world.goals.insert(0, (-away[0], -away[1]))

    @classmethod
    def solved(cls, world: World) -> bool:
        """Returns whether the opposite of the goal is reached."""
        return distance(world.position, cls.aim(world)) < NEAR

    @classmethod
    def aim(cls, world: World) -> Point:
        """Returns the opposite of the goal."""
        return -world.goal[0], -world.goal[1]


class Dock(Reach):
    """Go to the goal and stand still on it."""

    @classmethod
    def solved(cls, world: World) -> bool:
        """Returns whether the agent stands on the goal."""
        return super().solved(world) and length(world.velocity) < STILL


class Visit(Reach):
    """Touch the puck first, then go to the goal."""

    @classmethod
    def place(cls, world: World, generator: np.random.Generator) -> None:
        """Draws puck and goal."""
        world.puck = draw(generator, 0.8, lambda p: distance(p, world.position) > 0.4)
        world.goals.insert(
            0, draw(generator, 0.9, lambda p: min(distance(p, world.position), distance(p, world.puck)) > 0.4)
        )

    @classmethod
    def move(cls, world: World, before: Point) -> None:
        """Notes that the puck was touched."""
        world.touched |= distance(world.position, world.puck) < NEAR

    @classmethod
    def solved(cls, world: World) -> bool:
        """Returns whether the goal is reached after the puck."""
        return world.touched and super().solved(world)

    @classmethod
    def aim(cls, world: World) -> Point:
        """Returns the puck, then the goal."""
        return world.goal if world.touched else world.puck


class Carry(Visit):
    """Take the puck to the goal: once touched, it stays with the agent."""

    @classmethod
    def move(cls, world: World, before: Point) -> None:
        """Moves a touched puck with the agent."""
        super().move(world, before)
        if world.touched:
            world.puck = world.position


class Avoid(Reach):
    """Go to the goal around an obstacle; an agent that touches it has failed."""

    @classmethod
    def place(cls, world: World, generator: np.random.Generator) -> None:
        """Draws a goal on the other side of an obstacle."""
        goal = draw(generator, 0.9, lambda p: distance(p, world.position) > 0.9)
        way = plus(goal, world.position, -1)
        across = unit((-way[1], way[0]))
        aside = float(generator.uniform(0.03, 0.15)) * (1 if generator.random() < 0.5 else -1)
        world.mark = plus(plus(world.position, way, float(generator.uniform(0.4, 0.6))), across, aside)
        world.goals.insert(0, goal)

    @classmethod
    def move(cls, world: World, before: Point) -> None:
        """Marks the episode as failed if the agent touches the obstacle."""
        world.failed |= distance(world.position, world.mark) < OBSTACLE

    @classmethod
    def aim(cls, world: World) -> Point:
        """Returns the goal, or a point beside the obstacle while that is in the way."""
        way = unit(plus(world.goal, world.position, -1))
        to = plus(world.mark, world.position, -1)
        ahead, side = along(to, way), to[0] * way[1] - to[1] * way[0]
        margin = OBSTACLE + 0.16
        if not 0 < ahead < distance(world.goal, world.position) or abs(side) > margin:
            return world.goal
        # The side on which the straight line passes; `side` > 0 if the obstacle is to the right.
        left = (-way[1], way[0]) if side > 0 else (way[1], -way[0])
        return plus(world.mark, left, margin + 0.02)


class Gate(Reach):
    """Go to the goal through the gap in a wall in the middle."""

    @classmethod
    def place(cls, world: World, generator: np.random.Generator) -> None:
        """Draws the gap, the agent on its left and the goal on its right."""
        world.mark = 0.0, float(generator.uniform(-0.6, 0.6))
        world.position = float(generator.uniform(-0.9, -0.3)), float(generator.uniform(-0.9, 0.9))
        world.goals.insert(0, (float(generator.uniform(0.3, 0.9)), float(generator.uniform(-0.9, 0.9))))

    @classmethod
    def move(cls, world: World, before: Point) -> None:
        """Keeps the agent on its side of the wall, except in the gap."""
        (x, y), wall = world.position, world.mark[0]
        if (x < wall) != (before[0] < wall) and abs(y - world.mark[1]) > GAP:
            world.position, world.velocity = (before[0], y), (0.0, world.velocity[1])

    @classmethod
    def aim(cls, world: World) -> Point:
        """Returns a point before the gap, one behind it, and then the goal."""
        (x, y), (wall, gap) = world.position, world.mark
        if x > wall + 0.06:
            return world.goal
        return (wall + 0.2, gap) if abs(y - gap) < GAP / 2 else (wall - 0.12, gap)


class Push(Reach):
    """Push the puck to the goal."""

    @classmethod
    def place(cls, world: World, generator: np.random.Generator) -> None:
        """Draws the puck, and its goal away from the walls."""
        world.puck = draw(generator, 0.6, lambda p: distance(p, world.position) > 0.3)
        world.goals.insert(0, draw(generator, 0.7, lambda p: distance(p, world.puck) > 0.4))

    @classmethod
    def move(cls, world: World, before: Point) -> None:
        """Pushes the puck away if the agent runs into it."""
        if distance(world.puck, world.position) < CONTACT:
            x, y = plus(world.position, unit(plus(world.puck, world.position, -1)), CONTACT)
            world.puck = min(1.0, max(-1.0, x)), min(1.0, max(-1.0, y))

    @classmethod
    def solved(cls, world: World) -> bool:
        """Returns whether the puck is at the goal."""
        return distance(world.puck, world.goal) < ON_GOAL

    @classmethod
    def aim(cls, world: World) -> Point:
        """Returns points around the puck until the agent is behind it, then the puck."""
        way = unit(plus(world.goal, world.puck, -1))
        from_puck = plus(world.position, world.puck, -1)
        ahead = along(from_puck, way)
        across = plus(from_puck, way, -ahead)
        beside = unit(across) if length(across) > 1e-3 else (-way[1], way[0])
        if ahead > -0.8 * CONTACT:
            if length(across) > CONTACT + 0.02:
                return plus(plus(world.puck, beside, CONTACT + 0.1), way, -CONTACT - 0.1)
            return plus(plus(world.puck, beside, CONTACT + 0.15), way, max(ahead, 0.0))
        back = CONTACT + 0.08 if length(across) > 0.05 else 0.0
        return plus(world.puck, way, -back)


RULES: Mapping[str, type[Reach]] = {
    rule.__name__.lower(): rule for rule in (Reach, Mirror, Dock, Visit, Carry, Avoid, Gate, Push)
}
"""Rules by name."""

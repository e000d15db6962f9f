"""Boxes and keypoints of rendered scenes: where they lie, how they move, and that a suite has to ask for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtlbench.data import Collate
from mtlbench.data_modules.rendering import (
    JOINTS,
    MOST_PERSONS,
    MOST_THINGS,
    SEMSEG_CLASSES,
    THING_CLASSES,
    Rendered,
    describe,
    render,
)
from mtlbench.data_modules.rendering.labels import MIN_AREA
from mtlbench.data_modules.scenes import Scenes
from mtlbench.testing import check_data_module

COUNT, SIZE = 12, 48
PERSON = SEMSEG_CLASSES.index("person")


@pytest.fixture(scope="module")
def shots() -> Rendered:
    return render(0, range(COUNT), SIZE, SIZE)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


def module(cache: Path, **options: Any) -> Scenes:
    return Scenes(**{"size": 24, "train": 8, "val": 3, "test": 3, "cache": str(cache), **options})


def test_boxes_are_those_around_what_is_seen_of_a_thing(shots: Rendered) -> None:
    small = 0
    for index in range(COUNT):
        things, instance, rows = describe(0, index).things, shots.instance[index], iter(shots.detection[index])
        for number in np.unique(instance[instance > 0]):
            if things[number - 1].label < 2:
                continue
            row, column = np.nonzero(instance == number)
            x0, y0, x1, y1, score, label = next(rows)
            assert (x0, y0, x1, y1) == (column.min(), row.min(), column.max() + 1, row.max() + 1)
            assert THING_CLASSES[int(label)] == SEMSEG_CLASSES[things[number - 1].label]
            assert score == (len(row) >= MIN_AREA * SIZE**2)
            small += not score
        assert not any(rest.any() for rest in rows)
    assert small > 0


def test_no_scene_has_more_things_than_there_are_rows() -> None:
    scenes = [describe(0, index).things for index in range(60)]
    assert max(sum(thing.label >= 2 for thing in things) for things in scenes) <= MOST_THINGS
    assert max(sum(thing.label == PERSON for thing in things) for things in scenes) <= MOST_PERSONS


def test_joints_lie_where_the_camera_sees_them(shots: Rendered) -> None:
    behind, hidden = [], 0
    for index in range(COUNT):
        scene, rows = describe(0, index), iter(shots.keypoints[index])
        for number, thing in enumerate(scene.things, 1):
            mask = shots.instance[index] == number
            if thing.label != PERSON or not mask.any():
                continue
            for name, (x, y, state) in zip(JOINTS, next(rows)[5:].reshape(-1, 3), strict=True):
                # By the definition of a pinhole camera, with the depth of the joint.
                local = scene.camera.rotation.T @ (
                    thing.rotation @ thing.joints[name] + thing.position - scene.camera.position
                )
                depth, focal = -local[2], scene.camera.focal(SIZE, SIZE)
                place = SIZE / 2 + focal * local[0] / depth, SIZE / 2 - focal * local[1] / depth
                inside = 0 <= min(place) and max(place) < SIZE
                assert (state > 0) == inside
                if inside:
                    assert np.allclose((x, y), place, atol=1e-3)
                    assert (state == 2) == mask[int(place[1]), int(place[0])]
                    behind += [depth - shots.depth[index][int(place[1]), int(place[0])]] * int(state == 2)
                    hidden += state == 1
    # Joints lie within the body, mostly a few centimetres behind its surface.
    assert len(behind) > 60 and hidden > 5 and min(behind) > -0.05 and 0 < np.median(behind) < 0.15


def test_a_suite_has_to_ask_for_boxes_and_keypoints(cache: Path) -> None:
    assert Scenes.tasks_of({}) == Scenes.TASKS and module(cache).tasks.keys() == Scenes.TASKS.keys()
    asked = module(cache, instances=True)
    assert list(asked.tasks) == [*Scenes.TASKS, "detection", "keypoints"] == list(Scenes.tasks_of({"instances": True}))
    assert asked.fingerprint() == module(cache).fingerprint(), "the pictures are the same"
    assert [
        f.detail for f in check_data_module("mtlbench.data_modules.scenes:Scenes", **_plain(asked)) if not f.ok
    ] == []


def _plain(data: Scenes) -> dict[str, Any]:
    return {"size": data.size, **data.counts, "cache": str(data.cache), "instances": True}


def test_every_image_has_labels_and_batches_are_sound(cache: Path) -> None:
    data = module(cache, tasks=Scenes.INSTANCES)
    samples = [data.samples("train")[index] for index in range(8)]
    batch = Collate(data.tasks)(samples)
    assert batch["targets"]["detection"].shape == (8, MOST_THINGS, 6)
    assert batch["counts"]["detection"] > 8 and batch["counts"]["keypoints"] >= 8
    assert min(data.tasks["keypoints"].things(batch["targets"]["keypoints"]).sum(1)) == 0, "some show nobody"


class Mirror(np.random.Generator):
    """A generator whose coin says that the image is to be mirrored."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def random(self, *_: Any, **__: Any) -> float:  # type: ignore[override]
        return 0.1


def test_augmentation_mirrors_boxes_and_exchanges_left_and_right(cache: Path) -> None:
    data = module(cache, tasks={**Scenes.INSTANCES, "semseg": Scenes.TASKS["semseg"]})
    samples = [data.samples("train")[index] for index in range(8)]
    sample = next(s for s in samples if s["targets"]["keypoints"].any())
    mirrored = data.augment(sample, Mirror())["targets"]
    boxes, flipped = sample["targets"]["detection"], mirrored["detection"]
    known = boxes[:, 2] > 0
    assert torch.equal(flipped[known][:, [0, 2]], 24 - boxes[known][:, [2, 0]])
    assert torch.equal(flipped[:, [1, 3, 4, 5]], boxes[:, [1, 3, 4, 5]]) and not flipped[~known].any()
    points, turned = (t["keypoints"][0, 5:].view(-1, 3) for t in (sample["targets"], mirrored))
    swap = {"left": "right", "right": "left"}
    sides = [(name.partition("_")[0], name) for name in JOINTS]
    other = [JOINTS.index(name.replace(side, swap.get(side, side))) for side, name in sides]
    assert torch.equal(turned[:, 2], points[other][:, 2])
    shown = turned[:, 2] > 0
    assert torch.allclose(turned[shown][:, 0], 24 - points[other][shown][:, 0]) and shown.any()
    assert torch.equal(turned[shown][:, 1], points[other][shown][:, 1])

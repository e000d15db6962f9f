from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtlbench.data import Collate
from mtlbench.data_modules import rendering, scenes
from mtlbench.data_modules.rendering import Rendered, describe, render
from mtlbench.data_modules.rendering.motion import film, moving, swung
from mtlbench.data_modules.rendering.scene import BACKGROUND, GROUND, PERSON, Camera, Scene
from mtlbench.data_modules.rendering.solids import reach
from mtlbench.data_modules.scenes import Scenes
from mtlbench.errors import SuiteError

CLIPS, FRAMES, HEIGHT, WIDTH = 12, 6, 48, 64


@pytest.fixture(scope="module")
def clips() -> Rendered:
    return film(0, range(CLIPS), FRAMES, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def films() -> list[list[Scene]]:
    return [list(moving(0, i, FRAMES)) for i in range(CLIPS)]


def equal(a: Rendered, b: Rendered, pick: Any = slice(None)) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)[pick]) for f in fields(Rendered))


def world(camera: Camera, depth: np.ndarray) -> np.ndarray:
    """Back-projects depth to world points, (3, H, W)."""
    focal = camera.focal(*depth.shape)
    v, u = np.indices(depth.shape)
    seen = np.stack(((u + 0.5 - WIDTH / 2) / focal * depth, (HEIGHT / 2 - v - 0.5) / focal * depth, -depth))
    return np.einsum("ij,jhw->ihw", camera.rotation, seen) + camera.position[:, None, None]


def seen_by(camera: Camera, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Projects world points (3, Q): column, row and depth, fractional, pixel centres at whole numbers."""
    x, y, z = camera.rotation.T @ (points - camera.position[:, None])
    focal = camera.focal(HEIGHT, WIDTH)
    return -x / z * focal + WIDTH / 2 - 0.5, HEIGHT / 2 - 0.5 + y / z * focal, -z


# ---- geometry -----------------------------------------------------------------------------------------------------


def test_first_frames_are_the_still_images(clips: Rendered) -> None:
    assert equal(render(0, range(CLIPS), HEIGHT, WIDTH), clips, slice(None, None, FRAMES))
    assert equal(film(0, [4, 9], 1, HEIGHT, WIDTH), render(0, [4, 9], HEIGHT, WIDTH))


def test_a_frame_depends_on_seed_index_and_time_alone(clips: Rendered) -> None:
    assert equal(film(0, [5], FRAMES, HEIGHT, WIDTH), clips, slice(5 * FRAMES, 6 * FRAMES))
    assert equal(film(0, [3], 4, HEIGHT, WIDTH), clips, slice(3 * FRAMES, 3 * FRAMES + 4))
    other = film(1, [5], FRAMES, HEIGHT, WIDTH)
    assert (other.image != clips.image[5 * FRAMES : 6 * FRAMES]).mean() > 0.5


def test_noise_is_new_in_every_frame(clips: Rendered) -> None:
    images = clips.image.reshape(CLIPS, FRAMES, 3, HEIGHT, WIDTH).astype(np.float64)
    residual = images - (np.roll(images, 1, -1) + np.roll(images, -1, -1)) / 2
    # The sky or the wall at the top is smooth: what remains there is noise, and the same noise would agree.
    together = [np.corrcoef(clip[1][0, :8].ravel(), clip[2][0, :8].ravel())[0, 1] for clip in residual]
    assert np.median(np.abs(together)) < 0.2


def test_static_points_reproject_with_their_depth_and_normal(clips: Rendered, films: list[list[Scene]]) -> None:
    """Planes at rest, seen from two frames: 1 / depth is affine in the image of a plane, so bilinear is exact."""
    checked = 0
    for clip, film_ in enumerate(films):
        first, last = clip * FRAMES, clip * FRAMES + FRAMES - 1
        resting = [i + 1 for i, thing in enumerate(film_[0].things) if thing.label in (BACKGROUND, GROUND)]
        start, end = film_[0].camera, film_[-1].camera
        turn = end.rotation.T @ start.rotation
        for thing in resting:
            mine = clips.instance[first] == thing
            column, row, depth = seen_by(end, world(start, clips.depth[first])[:, mine])
            ok = (column > 0) & (column < WIDTH - 1) & (row > 0) & (row < HEIGHT - 1)
            column, row, depth = column[ok], row[ok], depth[ok]
            u, v = column.astype(int), row.astype(int)
            corners = [(v + dv, u + du) for dv in (0, 1) for du in (0, 1)]
            clear = np.all([clips.instance[last][c] == thing for c in corners], axis=0)
            share = [(1 - abs(row - r)) * (1 - abs(column - c)) for r, c in corners]
            inverse = sum(s / np.where(clear, clips.depth[last][c], 1) for s, c in zip(share, corners, strict=True))
            np.testing.assert_allclose(1 / inverse[clear], depth[clear], rtol=2e-4)
            normal = (turn @ clips.normals[first][:, mine])[:, ok][:, clear]
            for c in corners:
                np.testing.assert_allclose(clips.normals[last][:, c[0], c[1]][:, clear], normal, atol=1e-4)
            checked += int(clear.sum())
    assert checked > 5000


def test_cameras_move_smoothly() -> None:
    kinds = set()
    for i in range(40):
        cameras = [scene.camera for scene in moving(0, i, 24)]
        heading = np.array([c.rotation[[0, 2], 2] for c in cameras])
        place = np.stack([c.position for c in cameras])
        for camera in cameras:
            np.testing.assert_allclose(camera.rotation.T @ camera.rotation, np.eye(3), atol=1e-5)
        turned, went = np.ptp(heading, 0).max() > 0.01, np.ptp(place, 0).max() > 0.01
        kinds.add((turned, went))
        assert turned or went
        for path in (heading, place):
            speed = np.abs(np.diff(path, axis=0)).max()
            assert np.abs(np.diff(path, 2, axis=0)).max() < 0.35 * speed + 1e-4
        assert np.abs(place[:, 1] - place[0, 1]).max() < 1e-5 and np.abs(place - place[0]).max() < 1.7
    assert kinds == {(True, False), (False, True), (True, True)}  # Pan, dolly, orbit.


def test_things_move_and_scenery_rests(films: list[list[Scene]]) -> None:
    moved, all_things = 0, 0
    for film_ in films:
        for first, last in zip(film_[0].things, film_[-1].things, strict=True):
            change = np.abs(first.position - last.position).max() + np.abs(first.rotation - last.rotation).max()
            if first.label in (BACKGROUND, GROUND):
                assert last is first
            else:
                moved, all_things = moved + (change > 1e-3), all_things + 1
                assert np.abs(first.position - last.position).max() < 0.6
                assert first.label == PERSON or first.position[1] == last.position[1]
            assert first.label == last.label and len(first.solids) == len(last.solids)
    assert 0.2 < moved / all_things < 0.8


BONES = (("hip", "knee"), ("knee", "ankle"), ("ankle", "toe"), ("shoulder", "elbow"), ("elbow", "wrist"))
CAPSULES = {"left": (5, 6, 7, 8, 9), "right": (11, 12, 13, 14, 15)}
"""Positions of a figure's capsules among its solids, in the order of `BONES`."""


def test_walkers_hang_together_and_stand_on_the_ground(films: list[list[Scene]]) -> None:
    walked, down = 0, -np.array((0, 1, 0), np.float32)
    for film_ in films:
        for first, last in zip(film_[0].things, film_[-1].things, strict=True):
            if first.label != PERSON:
                continue
            walked += not np.allclose(first.joints["left_toe"], last.joints["left_toe"], atol=1e-3)
            for side, capsules in CAPSULES.items():
                for number, (a, b) in zip(capsules, BONES, strict=True):
                    bone = last.joints[f"{side}_{a}"] - last.joints[f"{side}_{b}"]
                    before = first.joints[f"{side}_{a}"] - first.joints[f"{side}_{b}"]
                    assert np.linalg.norm(bone) == pytest.approx(np.linalg.norm(before), rel=1e-4)
                    # Every capsule runs between its joints: surface and skeleton moved together.
                    middle = (last.joints[f"{side}_{a}"] + last.joints[f"{side}_{b}"]) / 2
                    np.testing.assert_allclose(last.solids[number].centre, middle, atol=1e-5)
                    axis = last.solids[number].rotation[:, 1] * np.linalg.norm(bone)
                    np.testing.assert_allclose(axis, bone, atol=1e-4)
            below = [float(last.position[1] + s.centre[1]) - reach(s, down) for s in last.solids]
            assert min(below) == pytest.approx(0, abs=1e-4)
    assert walked > 5


def test_limbs_swing_about_hips_and_shoulders_against_each_other() -> None:
    person = next(thing for i in range(9) for thing in describe(0, i).things if thing.label == PERSON)
    swing = swung(person, 0.4)
    for joint, way in (("left_knee", 1), ("right_knee", -1), ("left_elbow", -1), ("right_elbow", 1)):
        root = joint.replace("knee", "hip").replace("elbow", "shoulder")
        np.testing.assert_array_equal(swing.joints[root], person.joints[root])
        before, after = (thing.joints[joint] - thing.joints[root] for thing in (person, swing))
        angle = np.arctan2(after[2], -after[1]) - np.arctan2(before[2], -before[1])
        assert angle == pytest.approx(way * 0.4, abs=1e-4)  # +z is where the person faces.


@pytest.mark.parametrize(
    "arguments", [(0, [], 2, 48, 48), (0, [0], 0, 48, 48), (0, [0], 2, 4, 48), (0, [-1], 2, 48, 48)]
)
def test_wrong_arguments_are_named(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError):
        film(*arguments)


# ---- the data module ----------------------------------------------------------------------------------------------


def module(cache: Path, **options: Any) -> Scenes:
    return Scenes(**{"size": 24, "train": 5, "val": 2, "test": 3, "frames": 4, "cache": str(cache), **options})


def test_samples_come_clip_by_clip(tmp_path: Path) -> None:
    data, still = module(tmp_path), module(tmp_path, frames=1)
    samples = data.samples("test")
    assert data.clip_length == 4 and still.clip_length == 1 and len(samples) == 12 and len(still.samples("test")) == 3
    assert [samples[i]["id"] for i in (0, 3, 4, -1)] == ["test/0@0", "test/0@3", "test/1@0", "test/2@3"]
    for clip in range(3):
        first, image = samples[4 * clip], still.samples("test")[clip]
        assert torch.equal(first["image"], image["image"]) and first["targets"].keys() == image["targets"].keys()
        assert all(torch.equal(first["targets"][name], image["targets"][name]) for name in image["targets"])
        assert image["id"] == f"test/{clip}"
    longer = module(tmp_path, frames=6).samples("test")
    assert torch.equal(longer[6 + 3]["image"], samples[4 + 3]["image"])


def test_chunks_hold_whole_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = module(tmp_path / "a").samples("train")
    for size in (1, 8, 9):
        monkeypatch.setattr(scenes, "_CHUNK", size)
        cut = module(tmp_path / str(size)).samples("train")
        assert len(cut) == 20 and all(torch.equal(cut[i]["image"], whole[i]["image"]) for i in range(20))


def test_frames_keep_the_contract_of_samples(tmp_path: Path) -> None:
    data = module(tmp_path, train=8)
    samples = [data.samples("train")[i] for i in range(32)]
    batch = Collate(data.tasks)(samples)
    for name, task in data.tasks.items():
        prediction = torch.randn(32, task.channels, 24, 24)
        assert torch.isfinite(task.loss(prediction, batch["targets"][name])) and batch["counts"][name] > 0
    people = [bool((sample["targets"]["semseg"] == PERSON).any()) for sample in samples]
    assert [("parts" in sample["targets"]) for sample in samples] == people and len(set(people)) == 2
    assert len(set(batch["id"])) == 32


def test_training_shuffles_frames(tmp_path: Path) -> None:
    data = module(tmp_path, batch_size=10, steps=4)
    assert data.steps_per_epoch() == 2
    ids = [id_ for batch in data.train_dataloader() for id_ in batch["id"]]
    assert len(ids) == 40 and len(set(ids[:20])) == 20
    assert len({id_.partition("@")[0] for id_ in ids[:6]}) > 2


def test_clips_are_other_data_and_stills_are_what_they_were(tmp_path: Path) -> None:
    """Finished runs on still images stay valid: their fingerprint does not know that there are clips."""

    def digest(*parts: object) -> str:
        return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()

    counts = {"train": 5, "val": 2, "test": 3}
    assert module(tmp_path, frames=1).fingerprint() == digest(1, 24, counts, 0, "9d79d5dfa448a857")
    prints = {module(tmp_path, frames=frames).fingerprint() for frames in (1, 2, 3)}
    assert len(prints) == 3
    for frames in (1, 2):
        module(tmp_path, frames=frames).prepare_data()
    assert len(list(tmp_path.iterdir())) == 6


def test_changed_source_never_reads_an_old_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, frames=2).prepare_data()
    before = set(tmp_path.iterdir())
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + (b"#" if path.name == "motion.py" else b""))
    scenes._source.cache_clear()
    module(tmp_path, frames=2).prepare_data()
    scenes._source.cache_clear()
    assert len(before) == 3 and len(set(tmp_path.iterdir()) - before) == 3


def test_frames_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="one frame a scene.*frames 0"):
        module(tmp_path, frames=0)


def test_pictures_are_those_of_the_revision_that_finished_runs_know() -> None:
    """Where this fails on purpose, renew ``_REVISION`` of the data module and these values."""
    stills = rendering.render(0, range(2), 64, 64)
    red = [
        [59, 85, 92, 113, 79, 93, 119, 218, 182, 58, 169, 218, 122, 221, 120, 224],
        [119, 131, 142, 135, 87, 132, 150, 153, 157, 94, 124, 60, 158, 157, 155, 150],
    ]
    classes = [[0, 0, 0, 0, 0, 9, 5, 1, 3, 9, 5, 1, 1, 1, 1, 1], [2, 0, 0, 0, 8, 0, 0, 0, 1, 5, 3, 7, 1, 1, 1, 1]]
    np.testing.assert_allclose(stills.image[:, 0, ::21, ::21].reshape(2, -1), red, atol=1)
    np.testing.assert_array_equal(stills.semseg[:, ::21, ::21].reshape(2, -1), classes)
    np.testing.assert_allclose(stills.depth[0, 0, ::21], [5.601, 6.533, 7.837, 9.792], atol=2e-3)
    clip = rendering.motion.film(0, range(1), 3, 32, 32)
    np.testing.assert_allclose(clip.image[2, 0, ::11, ::11], [[66, 80, 92], [76, 64, 39], [85, 148, 223]], atol=1)

from __future__ import annotations

import multiprocessing
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtlbench.data import Collate
from mtlbench.data_modules import scenes
from mtlbench.data_modules.rendering import PART_CLASSES, SEMSEG_CLASSES, Rendered, describe, render, tracing
from mtlbench.data_modules.rendering.layout import MIN_SOLIDS
from mtlbench.data_modules.rendering.scene import (
    FAR,
    Camera,
    Kind,
    Light,
    Material,
    Scene,
    Solid,
    Texture,
    Thing,
    rotation,
    vector,
)
from mtlbench.data_modules.rendering.solids import enter, normal
from mtlbench.data_modules.scenes import Scenes
from mtlbench.errors import SuiteError
from mtlbench.tasks import IGNORE
from tests.support.command_line import started

PERSON = SEMSEG_CLASSES.index("person")
N, SIZE = 40, 64


@pytest.fixture(scope="module")
def rendered() -> Rendered:
    return render(0, range(N), SIZE, SIZE)


def same(a: Rendered, b: Rendered, pick: Any = slice(None)) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)[pick]) for f in fields(Rendered))


def points(depth: np.ndarray, index: int) -> np.ndarray:
    """Back-projects depth to points in the camera frame, (3, H, W), by the definition of a pinhole camera."""
    height, width = depth.shape
    focal = describe(0, index).camera.focal(height, width)
    v, u = np.indices(depth.shape)
    return np.stack(((u + 0.5 - width / 2) / focal * depth, (height / 2 - v - 0.5) / focal * depth, -depth))


def test_images_depend_on_seed_and_index_alone(rendered: Rendered) -> None:
    assert same(rendered, render(0, range(N), SIZE, SIZE))
    assert same(render(0, [5], SIZE, SIZE), rendered, slice(5, 6))
    assert same(render(0, [7, 2], SIZE, SIZE), rendered, [7, 2])
    other = render(1, range(3), SIZE, SIZE)
    assert all((other.image[i] != rendered.image[i]).mean() > 0.5 for i in range(3))
    assert (rendered.image[0] != rendered.image[1]).mean() > 0.5


def test_shapes_dtypes_and_ranges(rendered: Rendered) -> None:
    wide = render(0, [3], 48, 80)
    assert wide.image.shape == wide.normals.shape == (1, 3, 48, 80) and wide.edges.shape == (1, 48, 80)
    types = {f.name: getattr(rendered, f.name).dtype for f in fields(Rendered)}
    assert {types.pop(name) for name in ("depth", "normals", "detection", "keypoints")} == {np.dtype(np.float32)}
    assert types.pop("instance") == np.int32
    assert set(types.values()) == {np.dtype(np.uint8)}
    assert set(np.unique(rendered.semseg)) == set(range(len(SEMSEG_CLASSES)))
    assert set(np.unique(rendered.parts)) == set(range(len(PART_CLASSES)))
    for mask in (rendered.saliency, rendered.edges):
        assert set(np.unique(mask)) == {0, 1}
    surface = rendered.instance > 0
    assert (rendered.depth[~surface] == 0).all() and (rendered.normals.transpose(0, 2, 3, 1)[~surface] == 0).all()
    assert 0.5 < rendered.depth[surface].min() and rendered.depth.max() < FAR


def test_normals_are_unit_and_face_the_camera(rendered: Rendered) -> None:
    surface = rendered.depth > 0
    np.testing.assert_allclose(np.linalg.norm(rendered.normals, axis=1)[surface], 1, atol=1e-5)
    for i in range(N):
        towards = -(rendered.normals[i] * points(rendered.depth[i], i)).sum(0)
        assert (towards[surface[i]] > -1e-3).all()


def test_normals_agree_with_the_gradient_of_depth() -> None:
    size, angles = 160, []
    for i in range(6):
        shot = render(0, [i], size, size)
        p = points(shot.depth[0].astype(np.float64), i)
        right, up = p[:, 1:-1, 2:] - p[:, 1:-1, :-2], p[:, :-2, 1:-1] - p[:, 2:, 1:-1]
        cross = np.cross(right, up, axis=0)
        cross /= np.maximum(np.linalg.norm(cross, axis=0), 1e-12)
        ids, near_edge = shot.instance[0], shot.edges[0] > 0
        inside = ids[1:-1, 1:-1] > 0
        for dy in (0, 1, 2):
            for dx in (0, 1, 2):
                window = slice(dy, size - 2 + dy), slice(dx, size - 2 + dx)
                inside = inside & (ids[window] == ids[1:-1, 1:-1]) & ~near_edge[window]
        cosine = (cross * shot.normals[0, :, 1:-1, 1:-1]).sum(0)
        angles.append(np.degrees(np.arccos(np.clip(cosine[inside], -1, 1))))
    angle = np.concatenate(angles)
    # Differences over two pixels are exact on planes and of second order on curved solids.
    assert len(angle) > 50_000
    assert np.median(angle) < 0.1 and np.quantile(angle, 0.95) < 3 and (angle < 15).mean() > 0.985


def test_edges_are_the_borders(rendered: Rendered) -> None:
    for i in range(N):
        ids, depth, edges = rendered.instance[i], rendered.depth[i], rendered.edges[i] > 0
        z = np.where(depth > 0, depth, np.inf)
        touched = np.zeros_like(edges)
        for axis in (0, 1):
            first, second = [slice(None)] * 2, [slice(None)] * 2
            first[axis], second[axis] = slice(-1), slice(1, None)
            a, b = tuple(first), tuple(second)
            border = ids[a] != ids[b]
            nearer = np.where(z[a] <= z[b], edges[a], edges[b])
            assert nearer[border].all()
            # Creases and self-occlusion besides: every edge pixel has some visible change of geometry beside it.
            turn = (rendered.normals[i][(slice(None), *a)] * rendered.normals[i][(slice(None), *b)]).sum(0) < 0.9
            change = border | turn | (np.abs(depth[a] - depth[b]) > 0.1)
            touched[a] |= change
            touched[b] |= change
        assert not (edges & ~touched).any()
    assert 0.02 < rendered.edges.mean() < 0.2


def test_edges_are_thin(rendered: Rendered) -> None:
    e = rendered.edges > 0
    # Solid 3 x 3 blocks occur only where things are themselves a few pixels wide.
    full = np.ones_like(e[:, 2:, 2:])
    for dy in range(3):
        for dx in range(3):
            full = full & e[:, dy : SIZE - 2 + dy, dx : SIZE - 2 + dx]
    assert full.sum() < 0.02 * e.sum()


def test_parts_cover_persons_and_nothing_else(rendered: Rendered) -> None:
    assert np.array_equal(rendered.parts > 0, rendered.semseg == PERSON)
    peopled = [any(thing.label == PERSON for thing in describe(0, i).things) for i in range(200)]
    assert 0.8 < np.mean(peopled) < 0.97


def test_labels_are_constant_on_an_instance(rendered: Rendered) -> None:
    for i in range(N):
        things = describe(0, i).things
        truth = np.array([0, *(thing.label for thing in things)])
        assert np.array_equal(truth[rendered.instance[i]], rendered.semseg[i])


def test_bounding_tests_lose_nothing(rendered: Rendered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "bound", lambda solid: np.inf if solid.kind == Kind.PLANE else 100.0)
    assert same(render(0, range(8), SIZE, SIZE), rendered, slice(8))


def test_a_ball_under_the_lamp_shades_the_disc_below_it() -> None:
    paint = Material(Texture.PLAIN, np.ones((2, 3), np.float32), np.ones(3, np.float32), 0.0, 0.0)
    ground = Solid(Kind.PLANE, vector(0, 0, 0), rotation(), vector(1, 1, 1), paint)
    ball = Solid(Kind.SPHERE, vector(0, 0, 0), rotation(), vector(0.5, 0.5, 0.5), paint)
    things = (Thing(1, (ground,), vector(0, 0, 0), rotation()), Thing(2, (ball,), vector(0.2, 1.0, -4), rotation()))
    camera = Camera(vector(0, 1.5, 0), rotation(pitch=-0.3, roll=0.1), 1.0, 0.3, 0.0)
    scene = Scene(things, camera, Light(vector(0, 1, 0), *[np.ones(3, np.float32)] * 4))
    table = tracing.tabulate(scene)
    hits = tracing.visible(table, tracing.rays(camera, 96, 96))
    lamp, floor = camera.rotation.T @ vector(0, 1, 0), table.kind[hits.solid] == Kind.PLANE
    dark = tracing.shadowed(table, hits, lamp, lamp @ hits.normal > 0)
    world = camera.rotation @ hits.point + camera.position[:, None]
    distance = np.hypot(world[0] - 0.2, world[2] + 4)
    clear = floor & (np.abs(distance - 0.5) > 5e-3)
    assert np.abs(world[1][floor]).max() < 1e-3 and not dark[~floor].any()
    assert np.array_equal(dark[clear], distance[clear] < 0.5) and dark.sum() > 50


def test_saliency_is_no_semantic_class(rendered: Rendered) -> None:
    scenery = rendered.semseg <= SEMSEG_CLASSES.index("ground")
    assert not rendered.saliency[scenery].any()
    chosen = rendered.saliency[~scenery].mean()
    assert 0.2 < chosen < 0.8
    for label in range(2, len(SEMSEG_CLASSES)):
        assert rendered.saliency[rendered.semseg == label].mean() < 0.95
    for i in range(N):
        inside = rendered.saliency[i] > 0
        assert not np.intersect1d(rendered.instance[i][inside], rendered.instance[i][~inside & ~scenery[i]]).size


def test_scenes_are_full_and_exposed(rendered: Rendered) -> None:
    assert all(sum(len(thing.solids) for thing in describe(0, i).things) >= MIN_SOLIDS for i in range(N))
    mean = rendered.image.mean((1, 2, 3))
    assert mean.min() > 60 and mean.max() < 200
    assert (rendered.image == 255).mean() < 0.02 and rendered.image.std((1, 2, 3)).min() > 12
    assert ((rendered.semseg > 1).mean((1, 2)) > 0.02).mean() > 0.9


def test_figures_hang_together_and_stand_on_the_ground() -> None:
    figures = [thing for i in range(N) for thing in describe(0, i).things if thing.label == PERSON]
    assert len(figures) > 10
    for thing in figures:
        world = {name: thing.position + thing.rotation @ joint for name, joint in thing.joints.items()}
        assert min(point[1] for point in world.values()) > 0
        for side in ("left", "right"):
            thigh = np.linalg.norm(world[f"{side}_hip"] - world[f"{side}_knee"])
            assert 0.2 < thigh / (np.linalg.norm(world["neck"] - world["pelvis"]) / 0.3) < 0.28


@pytest.mark.parametrize("kind", list(Kind))
def test_rays_enter_where_the_solid_begins(kind: Kind) -> None:
    """The hit lies on the surface, the normal faces the ray, and nothing before the hit is inside."""
    generator = np.random.default_rng(0)
    count, length = 2000, np.float32(1.7)
    target = generator.uniform(-1, 1, (3, count))
    origin = generator.normal(size=(3, count))
    origin *= 6 / np.linalg.norm(origin, axis=0)
    origin, direction = origin.astype(np.float32), (target - origin).astype(np.float32)
    t = enter(kind, origin, direction, np.full(count, length))
    steps = np.linspace(0, 2, 2001)[:, None, None]
    inside = _inside(kind, origin.astype(np.float64) + steps * direction, float(length))
    first = np.where(inside.any(0), inside.argmax(0) / 1000, np.inf)
    # Rays that start inside a half-space or come too late for the samples say nothing.
    told = (first > 0) & ~(np.isfinite(t) & (t >= 2))
    t, first, origin, direction = t[told], first[told], origin[:, told], direction[:, told]
    # Sampled a thousandth apart: the analytic entry lies just before; grazing hits may slip between samples.
    both = np.isfinite(first) & np.isfinite(t)
    assert (np.abs(t[both] - first[both]) < 2.1e-3).all() and both.mean() > 0.3
    assert not (np.isfinite(first) & ~np.isfinite(t)).any()
    assert (np.isfinite(t) & ~np.isfinite(first)).mean() < 0.01
    point = (origin + t * direction)[:, both]
    outward, _ = normal(kind, point, np.full(point.shape[1], length))
    assert ((outward * direction[:, both]).sum(0) < 1e-3).all()
    step = 1e-2 * outward / np.linalg.norm(outward, axis=0)
    assert _inside(kind, point - step, float(length)).mean() > 0.97
    assert not _inside(kind, point + step, float(length)).any()


def _inside(kind: Kind, p: np.ndarray, length: float) -> np.ndarray:
    """Whether points, (..., 3, Q), lie in a canonical solid."""
    x, y, z = p[..., 0, :], p[..., 1, :], p[..., 2, :]
    radius = np.hypot(x, z)
    return {
        Kind.PLANE: y <= 0,
        Kind.SPHERE: radius**2 + y**2 <= 1,
        Kind.BOX: np.abs(p).max(-2) <= 1,
        Kind.CYLINDER: (radius <= 1) & (np.abs(y) <= 1),
        Kind.CONE: (radius <= (1 - y) / 2) & (np.abs(y) <= 1),
        Kind.CAPSULE: radius**2 + (y - np.clip(y, -length, length)) ** 2 <= 1,
    }[kind]


@pytest.mark.parametrize("arguments", [(0, [], 64, 64), (0, [0], 4, 64), (-1, [0], 64, 64), (0, [-1], 64, 64)])
def test_wrong_arguments_are_named(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError):
        render(*arguments)


def module(cache: Path, **options: Any) -> Scenes:
    return Scenes(**{"size": 24, "train": 12, "val": 4, "test": 4, "cache": str(cache), **options})


def test_samples_keep_the_contract(tmp_path: Path) -> None:
    data = module(tmp_path, train=20)
    samples = [data.samples("train")[i] for i in range(20)]
    batch = Collate(data.tasks)(samples)
    assert batch["image"].dtype == torch.uint8 and batch["image"].shape == (20, 3, 24, 24)
    for name, task in data.tasks.items():
        blank, target = task.blank(24, 24), batch["targets"][name]
        assert target.dtype == blank.dtype and target.shape[1:] == blank.shape
        prediction = torch.randn(20, task.channels, 24, 24)
        assert torch.isfinite(task.loss(prediction, target)) and batch["counts"][name] > 0
    normals = batch["targets"]["normals"]
    valid = normals[:, 0] != IGNORE
    torch.testing.assert_close(normals.norm(dim=1)[valid], torch.ones(int(valid.sum())), atol=1e-5, rtol=0)
    assert torch.equal(valid, batch["targets"]["depth"][:, 0] != IGNORE)
    assert len(set(batch["id"])) == 20 and batch["id"][3] == "train/3"


def test_images_without_people_have_no_parts_label(tmp_path: Path) -> None:
    samples = [module(tmp_path, train=20).samples("train")[i] for i in range(20)]
    people = [bool((sample["targets"]["semseg"] == PERSON).any()) for sample in samples]
    assert [("parts" in sample["targets"]) for sample in samples] == people and len(set(people)) == 2


def test_only_the_tasks_of_the_run_are_served(tmp_path: Path) -> None:
    data = module(tmp_path, tasks={"depth": Scenes.TASKS["depth"]})
    assert set(data.samples("val")[0]["targets"]) == {"depth"}


def test_splits_differ_and_small_splits_begin_large_ones(tmp_path: Path) -> None:
    small, large = module(tmp_path), module(tmp_path, train=16)
    assert torch.equal(small.samples("train")[11]["image"], large.samples("train")[11]["image"])
    firsts = [small.samples(split)[0]["image"] for split in Scenes.SPLITS]
    assert not torch.equal(firsts[0], firsts[1]) and not torch.equal(firsts[1], firsts[2])
    assert not torch.equal(firsts[0], module(tmp_path, scene_seed=1).samples("train")[0]["image"])


def test_the_cache_is_used_and_leaves_no_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path).prepare_data()
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(scenes.rendering, "render", None)
    assert len(module(tmp_path).samples("train")) == 12


def test_an_unusable_cache_falls_back_to_memory(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    a, b = module(blocked).samples("val")[1], module(tmp_path).samples("val")[1]
    assert torch.equal(a["image"], b["image"])
    assert all(torch.equal(a["targets"][name], b["targets"][name]) for name in b["targets"])


def test_a_damaged_cache_is_not_trusted(tmp_path: Path) -> None:
    good = module(tmp_path).samples("val")[3]["image"]
    (file,) = tmp_path.glob("val-*/image.npy")
    file.write_bytes(file.read_bytes()[:500])
    assert torch.equal(module(tmp_path).samples("val")[3]["image"], good)


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "_write", full)
    with pytest.raises(KeyboardInterrupt):
        module(tmp_path).prepare_data()
    assert not list(tmp_path.iterdir())


def test_processes_may_build_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=module(tmp_path).prepare_data) for _ in range(3)]
    with started(*workers):
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 3
    memory = module(tmp_path / "other").samples("train")
    assert all(torch.equal(module(tmp_path).samples("train")[i]["image"], memory[i]["image"]) for i in range(12))


class Fixed(np.random.Generator):
    """A generator whose first coin is known."""

    def __init__(self, coin: float):
        super().__init__(np.random.PCG64(0))
        self.coin = coin

    def random(self, *_: Any, **__: Any) -> float:  # type: ignore[override]
        return self.coin


def test_augmentation_mirrors_every_label(tmp_path: Path) -> None:
    data = module(tmp_path)
    sample = data.samples("train")[0]
    plain, flipped = data.augment(sample, Fixed(0.9)), data.augment(sample, Fixed(0.1))
    assert torch.equal(flipped["image"], plain["image"].flip(-1)) and flipped["image"].dtype == torch.uint8
    for name, target in sample["targets"].items():
        assert torch.equal(plain["targets"][name], target)
        expected = target.flip(-1).clone()
        if name == "normals":
            expected[0][expected[1] != IGNORE] *= -1
        assert torch.equal(flipped["targets"][name], expected)
    again = data.samples("train")[0]
    assert all(torch.equal(sample["targets"][name], again["targets"][name]) for name in again["targets"])


def test_augmentation_draws_from_its_generator_alone(tmp_path: Path) -> None:
    data = module(tmp_path)
    a, b, c = (data.augment(data.samples("train")[0], np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(a["image"], b["image"]) and not torch.equal(a["image"], c["image"])
    assert (a["image"].float().mean() - data.samples("train")[0]["image"].float().mean()).abs() < 40


def test_fingerprint_names_the_data(tmp_path: Path) -> None:
    prints = {module(tmp_path, **o).fingerprint() for o in ({}, {"train": 13}, {"size": 32}, {"scene_seed": 1})}
    assert len(prints) == 4 and module(tmp_path / "elsewhere").fingerprint() in prints


def test_younger_options_change_the_fingerprint_only_where_they_are_used(tmp_path: Path) -> None:
    # What runs that finished before there were typical colours have in their records.
    plain = "39a23556858ccefe"
    assert module(tmp_path).fingerprint() == module(tmp_path, typical=0.0).fingerprint() == plain
    assert len({plain, *(module(tmp_path, typical=share).fingerprint() for share in (0.5, 1.0))}) == 3


@pytest.mark.parametrize("options", [{"size": 4}, {"val": 0}, {"scene_seed": -1}, {"typical": 1.5}])
def test_wrong_options_are_named(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="Scenes need"):
        module(tmp_path, **options)


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="train, val, test"):
        module(tmp_path).samples("holdout")

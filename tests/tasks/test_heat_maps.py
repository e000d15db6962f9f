"""Detection and keypoints: values by hand, perfect predictions, pictures that move, and labels that break a rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mtlbench.data import Collate
from mtlbench.data_modules.dense.warp import Warp
from mtlbench.errors import DataError
from mtlbench.tasks import Detection, Keypoints
from mtlbench.tasks.geometry import LabelOptions
from mtlbench.tasks.heat_maps import PRIOR
from mtlbench.tasks.peaks import cells, focal, gaussian_radius, peaks, splat

H, W = 32, 40
BOXES = Detection("boxes", classes=3, most=6)
NAMES = ("head", "left_hand", "right_hand")
PEOPLE = Keypoints("people", names=NAMES, pairs=((1, 2),), limbs=((0, 1), (0, 2)), most=4)
NAN = float("nan")


def boxes(*rows):
    return BOXES.table(rows)


def people(*rows):
    return PEOPLE.table([PEOPLE.row(box, points) for box, points in rows])


LABELS = {
    BOXES: [
        boxes((4, 2, 21, 19, 1, 2), (20, 8, 38, 30, 1, 0), (0, 20, 8, 32, 0, 1)),
        BOXES.blank(H, W),
        boxes(),
        boxes((1, 1, 9, 9, 1, 1)),
    ],
    PEOPLE: [
        people(
            ((4, 2, 20, 28), {"head": (12, 4, 2), "left_hand": (5, 15, 1)}),
            ((25, 3, 39, 29), {"head": (30, 5, 2), "left_hand": (27, 14, 2), "right_hand": (37, 13, 2)}),
        ),
        PEOPLE.blank(H, W),
        people(),
        people(((10, 10, 20, 20), {"right_hand": (15, 11, 2)})),
    ],
}
KINDS = pytest.mark.parametrize("task", LABELS, ids=lambda task: task.name)


def drawn(task, seed=0):
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randn(4, task.channels, H, W, generator=generator, dtype=torch.float64)
    return prediction, torch.stack(LABELS[task])


def perfect(task, target):
    """Returns the raw predictions that say what a target says, with a heat close to 1 at places and to 0 elsewhere."""
    size = (H // task.stride, W // task.stride)
    grid = torch.zeros(len(target), task.channels, *size)
    grid[:, : task.heats] = torch.where(task.heat(target, size) == 1, 20.0, -20.0)
    for channels, cell, wanted, shown, _ in task.details(target, size):
        for image, row in shown.nonzero().tolist():
            x, y = cell[image, row].tolist()
            grid[image, channels, y, x] = wanted[image, row]
    return task.spread(grid, H, W)


# ---- values by hand -------------------------------------------------------------------------------------------------


def test_the_radius_of_a_square_is_that_of_the_smaller_box_inside() -> None:
    # (40 - 2r)² / 40² = 0.7, the strictest of the three cases for a square.
    assert_close(gaussian_radius(torch.tensor(40.0), torch.tensor(40.0)), torch.tensor((40 - 40 * math.sqrt(0.7)) / 2))


@pytest.mark.parametrize(("width", "height"), [(40, 40), (10, 60), (7, 5)])
def test_corners_within_the_radius_keep_the_overlap_and_farther_ones_may_not(width: float, height: float) -> None:
    r = float(gaussian_radius(torch.tensor(float(width)), torch.tensor(float(height))))

    def worst(d: float) -> float:
        whole = width * height
        shift = (width - d) * (height - d)
        return min(
            (width - 2 * d) * (height - 2 * d) / whole,
            whole / ((width + 2 * d) * (height + 2 * d)),
            shift / (2 * whole - shift),
        )

    assert worst(0.999 * r) > 0.7 > worst(1.001 * r)


def test_the_focal_loss_of_a_map_of_nine_cells() -> None:
    heat = torch.tensor([[0.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 0.0]])
    found = focal(torch.zeros(3, 3), heat)  # p = 1/2 everywhere
    assert_close(found[1, 1], torch.tensor(0.25 * math.log(2)))  # (1 - p)² ln 2 = 0.1733
    assert_close(found[0, 0], torch.tensor(0.25 * math.log(2)))  # p² ln 2
    assert_close(found[0, 1], torch.tensor(0.5**4 * 0.25 * math.log(2)))
    assert_close(found.sum(), torch.tensor((5 + 4 / 16) * 0.25 * math.log(2)))


def test_a_gaussian_is_one_at_its_cell_and_nothing_beyond_its_radius() -> None:
    cell = torch.tensor([[[2, 1], [3, 1], [0, 0]]])
    maps = splat(
        cell, torch.tensor([[1.0, 1, 9]]), torch.tensor([[True, True, False]]), torch.zeros(1, 3).long(), 2, (3, 6)
    )
    side, corner = math.exp(-2.0), math.exp(-4.0)  # The standard deviation is one half.
    rows = [[0, corner, side, side, corner, 0], [0, side, 1, 1, side, 0], [0, corner, side, side, corner, 0]]
    assert_close(maps[0, 0], torch.tensor(rows)) and not maps[0, 1].any()


def test_peaks_are_as_high_as_their_neighbours_and_equal_ones_keep_their_order() -> None:
    heat = torch.tensor([[[0.2, 0.1, 0.0, 0.7], [0.1, 0.0, 0.6, 0.0], [0.2, 0.0, 0.0, 0.7]], [[0.0] * 4] * 3])[None]
    found = peaks(heat, 5)
    assert_close(found.score, torch.tensor([[0.7, 0.7, 0.2, 0.2, 0.0]]))
    assert found.cell[0, :4].tolist() == [[3, 0], [3, 2], [0, 0], [0, 2]]


def test_a_centre_on_the_border_lies_in_the_last_cell() -> None:
    cell, rest = cells(torch.tensor([[[40.0, 32.0], [5.0, 31.0]]]), 4, (8, 10))
    assert cell.tolist() == [[[9, 7], [1, 7]]] and rest.tolist() == [[[1.0, 1.0], [0.25, 0.75]]]


def test_the_loss_of_one_box_by_hand() -> None:
    target = boxes((16, 8, 24, 16, 1, 1))[None]  # Its centre is the corner of a cell, and its radius is 0.
    raw = torch.zeros(1, 7, H, W)
    raw[:, :3] = -PRIOR  # p = 1/2
    raw[:, 3:5], raw[:, 5:] = 1.5, 0.25  # 2 x 2 cells wanted, place (0, 0)
    cells_ = 3 * 8 * 10
    assert_close(BOXES.loss(raw, target), torch.tensor(cells_ * 0.25 * math.log(2) + 0.1 * 2 * 0.5 + 2 * 0.25))


def test_what_is_to_be_ignored_costs_nothing_where_it_is() -> None:
    raw = torch.zeros(1, 7, H, W)
    with_crowd, without = boxes((8, 8, 24, 16, 0, 1))[None], boxes()[None]
    cell = float(-(0.1**2) * math.log(0.9))
    assert_close(BOXES.loss(raw, without) - BOXES.loss(raw, with_crowd), torch.tensor(3 * 8 * cell))


# ---- sums, counts and missing labels ---------------------------------------------------------------------------------


@KINDS
def test_sums_and_counts_of_parts_are_those_of_the_whole(task) -> None:
    prediction, target = drawn(task)
    whole = task.loss(prediction, target)
    assert_close(sum(task.loss(p[None], t[None]) for p, t in zip(prediction, target, strict=True)), whole)
    # Two things, no label, an empty image that counts as one element, and one thing.
    assert [task.count(t[None]) for t in target] == [2, 0, 1, 1] and task.count(target) == 4


@KINDS
@pytest.mark.parametrize("poison", [NAN, float("inf")])
def test_images_without_a_label_may_hold_anything_and_get_no_gradient(task, poison) -> None:
    prediction, target = drawn(task)
    clean = task.loss(prediction, target)
    prediction[1] = poison
    prediction.requires_grad_()
    loss = task.loss(prediction, target)
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert_close(loss, clean)
    assert not gradient[1].any() and all(gradient[i].any() for i in (0, 2, 3))
    metrics = [task.metric(), task.metric()]
    for metric, p in zip(metrics, (prediction, torch.where(prediction.isfinite(), prediction, 0.0)), strict=True):
        metric.update(p.detach(), target)
    assert metrics[0].compute() == metrics[1].compute()


@KINDS
def test_training_towards_the_truth_lowers_the_loss(task) -> None:
    target = torch.stack([LABELS[task][0], LABELS[task][3]])
    assert task.loss(perfect(task, target), target) < 1e-4 < 1 < task.loss(torch.zeros(2, task.channels, H, W), target)


# ---- decoding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height", [H, 30])
def test_a_perfect_map_gives_the_exact_boxes(height: int) -> None:
    target = torch.stack([boxes((4, 2, 21, 19, 1, 2), (20, 8, 38, 30, 1, 0)), boxes()])
    found = BOXES.decode(perfect(BOXES, target)[..., :height, :])
    assert found.shape == target.shape
    best = found[0, :2][found[0, :2, 5].argsort(descending=True)]
    assert_close(best[:, :4], target[0, :2, :4], atol=1e-4, rtol=0) and (best[:, 4] > 0.99).all()
    assert (found[0, 2:, 4] < 1e-3).all() and (found[1, :, 4] < 1e-3).all()


def test_a_perfect_map_gives_the_exact_poses_and_hidden_points_come_from_the_centre() -> None:
    target = people(((4, 2, 20, 28), {"head": (12, 4, 2), "left_hand": (5, 15, 1), "right_hand": (18, 21, 2)}))[None]
    raw = perfect(PEOPLE, target)
    found = PEOPLE.decode(raw)[0, 0, 5:].view(3, 3)
    assert_close(found[:, :2], target[0, 0, 5:].view(3, 3)[:, :2], atol=1e-4, rtol=0)
    assert found[:, 2].tolist() == [2, 2, 2]
    raw[:, 1 + 1] = -20  # The map of the left hand shows nothing.
    alone = PEOPLE.decode(raw)[0, 0, 5:].view(3, 3)
    assert_close(alone[:, :2], found[:, :2], atol=1e-4, rtol=0)
    assert alone[:, 2].tolist() == [2, 1, 2]


def test_a_point_moves_to_a_peak_near_it_and_not_to_one_outside_the_pose() -> None:
    target = people(((8, 8, 24, 24), {"head": (16, 8, 2), "left_hand": (8, 24, 2), "right_hand": (24, 24, 2)}))[None]
    raw = perfect(PEOPLE, target)
    heat, towards = raw[:, 1], raw[:, 4:6]
    towards[:, 0] += 1.0  # The centre says that the head is four pixels to the right.
    assert PEOPLE.decode(raw)[0, 0, 5:8].tolist() == [16, 8, 2]
    heat[:] = -20
    heat[:, 28:32, 36:40] = 20  # A peak far from the pose.
    assert PEOPLE.decode(raw)[0, 0, 5:8].tolist() == [20, 8, 1]


@KINDS
def test_a_larger_photograph_gets_larger_places(task) -> None:
    raw = perfect(task, torch.stack([LABELS[task][0]]))
    own, other = task.decode(raw), task.decode_at(raw, 2 * H, 3 * W)
    assert_close(other[..., 4], own[..., 4])
    first, x, y = (0, slice(0, 4, 2), slice(1, 4, 2)) if task is BOXES else (0, slice(5, None, 3), slice(6, None, 3))
    assert_close(other[0, first, x], 3 * own[0, first, x])
    assert_close(other[0, first, y], 2 * own[0, first, y])


@KINDS
def test_the_grid_of_a_spread_map_is_that_map(task) -> None:
    grid = torch.randn(2, 3, 8, 10)
    assert_close(task.grid(task.spread(grid, 30, 37)), grid)


# ---- the floor ------------------------------------------------------------------------------------------------------


@KINDS
def test_the_floor_finds_the_commonest_place_and_missing_labels_add_nothing(task) -> None:
    target = torch.stack([LABELS[task][3], LABELS[task][1], LABELS[task][3], LABELS[task][2]])

    def fitted(*batches):
        blind = task.blind()
        blind.frame(H, W)
        for batch in batches:
            blind.update(batch)
        blind.reduce()
        return blind.prediction()

    found = fitted(target)
    assert found.shape == (task.channels, H, W) and found.isfinite().all()
    assert_close(fitted(target[:2], target[2:]), found)
    assert_close(fitted(target[[0, 2, 3]]), found)
    best = task.decode(found[None].float())[0, 0]
    assert_close(best[4], torch.tensor(2 / 3))
    places = slice(0, 4) if task is BOXES else slice(11, 13)
    assert_close(best[places], LABELS[task][3][0, places])
    assert fitted(torch.stack([LABELS[task][1]])).isnan().any()


# ---- labels ---------------------------------------------------------------------------------------------------------


def test_boxes_move_with_the_picture() -> None:
    target = boxes((4, 2, 20, 12, 1, 2), (30, 20, 40, 32, 1, 0)).numpy()
    flipped = BOXES.warp(target, Warp.window(H, W, 0, 0, flip=True), LabelOptions())
    assert flipped[:2].tolist() == [[20, 2, 36, 12, 1, 2], [0, 20, 10, 32, 1, 0]] and not flipped[2:].any()
    crop = BOXES.warp(target, Warp.window(16, 16, 12, 4, scale=1.0), LabelOptions())
    assert crop[0].tolist() == [0, 0, 8, 8, 1, 2] and not crop[1:].any()
    barely = BOXES.warp(target, Warp.window(16, 16, 17, 4, scale=1.0), LabelOptions())
    assert barely[0].tolist() == [0, 0, 3, 8, 0, 2], "of a box that is hardly left, nothing is known"
    larger = BOXES.warp(target, Warp.window(H, W, 0, 0, scale=2.0), LabelOptions())
    assert larger[0].tolist() == [8, 4, 40, 24, 1, 2]
    assert np.isnan(BOXES.warp(BOXES.blank(H, W).numpy(), Warp.window(H, W, 0, 0, flip=True), LabelOptions())).all()


def test_a_quarter_turn_of_boxes_is_that_of_a_picture() -> None:
    box = boxes((4, 2, 20, 12, 1, 2))
    picture = np.zeros((40, 40), np.uint8)
    picture[2:12, 4:20] = 1
    warp = Warp.about_centre(40, 40, angle=90.0)
    rows, columns = np.nonzero(warp.nearest(picture, 0))
    x0, y0, x1, y1 = BOXES.warp(box.numpy(), warp, LabelOptions())[0, :4]
    assert np.allclose((x0, y0, x1, y1), (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), atol=1e-4)


def test_mirrored_people_exchange_their_hands_and_lose_what_leaves_the_picture() -> None:
    target = people(((4, 2, 20, 28), {"head": (12, 4, 2), "left_hand": (5, 15, 1)})).numpy()
    flipped = PEOPLE.warp(target, Warp.window(H, W, 0, 0, flip=True), LabelOptions())[0, 5:].reshape(3, 3)
    assert flipped.tolist() == [[28, 4, 2], [0, 0, 0], [35, 15, 1]]
    crop = PEOPLE.warp(target, Warp.window(H, 30, 6, 0, scale=1.0), LabelOptions())[0, 5:].reshape(3, 3)
    assert crop.tolist() == [[6, 4, 2], [0, 0, 0], [0, 0, 0]]


BAD = {
    "a box outside": (BOXES, boxes((30, 8, 41, 20, 1, 0)), r"boxes lie in the image, 0..40 x 0..32 .* \[30.0, 8.0, 41"),
    "corners exchanged": (BOXES, boxes((30, 8, 20, 20, 1, 0)), "x0 <= x1"),
    "an unknown class": (BOXES, boxes((3, 8, 20, 20, 1, 3)), "classes are 0..2. Found 3"),
    "no score": (BOXES, boxes((3, 8, 20, 20, 0.5, 1)), "scores are 1, or 0 .* Found 0.5"),
    "NaN in a part": (BOXES, boxes((3, 8, 20, NAN, 1, 1)), "NaN throughout"),
    "a point outside": (PEOPLE, people(((4, 2, 20, 28), {"head": (12, 33, 2)})), r"Found head at \[12.0, 33.0\]"),
    "a visibility": (PEOPLE, people(((4, 2, 20, 28), {"head": (12, 3, 3)})), "0, 1 or 2. Found 3"),
    "another shape": (BOXES, torch.zeros(7, 6), r"shape \(6, 6\), found torch.float32 of shape \(7, 6\)\. "),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_label_is_named_by_its_image(case: str) -> None:
    task, target, message = BAD[case]
    image = torch.zeros(3, H, W, dtype=torch.uint8)
    good = {"image": image, "targets": {"a": LABELS[task][0]}, "id": "fine"}
    Collate({"a": task})([good, {"image": image, "targets": {}, "id": "empty"}])
    with pytest.raises(DataError, match=f"^bad: a: .*{message}"):
        Collate({"a": task})([good, {"image": image, "targets": {"a": target}, "id": "bad"}])


def test_tables_refuse_too_many_things_and_unknown_points() -> None:
    with pytest.raises(DataError, match="at most 6 rows of 6 numbers. Found 7 of 6"):
        boxes(*[(0, 0, 1, 1, 1, 0)] * 7)
    with pytest.raises(DataError, match="at most 6 rows of 6 numbers. Found 1 of 5"):
        boxes((0, 0, 1, 1, 1))
    with pytest.raises(DataError, match="left_hnd.*left_hand"):
        PEOPLE.row((0, 0, 1, 1), {"left_hnd": (0, 0, 1)})
    for field in ("pairs", "limbs"):
        with pytest.raises(DataError, match=f"{field} hold indices of keypoints, 0..2. Found 3"):
            Keypoints("people", names=NAMES, **{field: ((0, 3),)})


# ---- pictures -------------------------------------------------------------------------------------------------------


@KINDS
def test_things_are_drawn_on_the_image_and_uncertain_ones_are_not(task) -> None:
    image = np.full((H, W, 3), 7, np.uint8)
    value = LABELS[task][0].numpy()
    shown = task.draw_on(image, value)
    assert shown.shape == image.shape and 10 < (shown != image).any(-1).sum() < H * W / 2
    assert (image == 7).all()
    faint = value.copy()
    faint[:, 4] = 0.1
    assert (task.draw_on(image, faint) == image).all() and (task.draw_on(image, LABELS[task][2].numpy()) == image).all()
    assert (task.draw_on(image, LABELS[task][1].numpy()) != image).all(), "an image without a label is hatched"
    assert task.draw(value).shape[2] == 3 and task.draw(LABELS[task][1].numpy()).shape[2] == 3


def test_a_box_is_drawn_along_its_border() -> None:
    shown = BOXES.draw_on(np.zeros((H, W, 3), np.uint8), boxes((4, 2, 21, 19, 1, 2)).numpy()).any(-1)
    wanted = np.zeros((H, W), bool)
    wanted[2:19, 4:21] = True
    wanted[3:18, 5:20] = False
    assert (shown == wanted).all()

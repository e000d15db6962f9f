"""Average precision and correct keypoints against COCO's code, plain loops, and two ranks."""

from __future__ import annotations

import contextlib
import io
import itertools
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import distributed
from torch.testing import assert_close

from mtlbench.metrics import AveragePrecision, CorrectKeypoints
from mtlbench.metrics.detection import matches

CLASSES, ROWS, JOINTS = 3, 12, 4
NAN = float("nan")


class Given:
    """A task whose raw predictions are the rows themselves."""

    def decode(self, prediction):
        return prediction


def random_boxes(seed, images=12):
    """Returns found and true rows (images, ROWS, 6): whole numbers and few scores, so that many tie; some are crowds.

    Image 0 shows nothing, image 1 has no label, image 2 shows a crowd alone, and in image 3 nothing is found.
    """
    generator = np.random.default_rng(seed)
    truth, found = np.zeros((2, images, ROWS, 6))
    for image in range(images):
        for row in range(generator.integers(1, ROWS)):
            x, y, w, h = generator.integers((0, 0, 4, 4), (20, 20, 12, 12))
            crowd = generator.random() < 0.2
            truth[image, row] = x, y, x + w, y + h, not crowd, generator.integers(CLASSES)
        for row in range(generator.integers(1, ROWS)):
            box, score = truth[image, generator.integers(ROWS)].copy(), generator.integers(1, 6) / 8
            box[:4] += generator.integers(-1, 2, 4)
            x, y = box[:2]
            index = box[5] if generator.random() < 0.9 else generator.integers(CLASSES)
            found[image, row] = x, y, max(box[2], x + 1), max(box[3], y + 1), score, index
    truth[0], truth[1], truth[2, :, 4], found[3] = 0, NAN, 0, 0
    return torch.tensor(found, dtype=torch.float32), torch.tensor(truth, dtype=torch.float32)


def precision(found, truth, cuts=(5,)):
    metric = AveragePrecision(Given(), CLASSES)
    for f, t in zip(found.tensor_split(cuts), truth.tensor_split(cuts), strict=True):
        metric.update(f, t)
    return metric.compute()["detection_map50@1"]


def rows_of(image, keep=lambda row: True):
    return [row for row in image.tolist() if row[2] > row[0] and row[3] > row[1] and keep(row)]


@pytest.mark.parametrize("seed", range(6))
def test_precision_is_that_of_pycocotools(seed):
    found, truth = random_boxes(seed)
    labelled = [i for i in range(len(truth)) if not truth[i].isnan().any()]
    number = itertools.count(1)

    def entry(image, row, **more):
        x0, y0, x1, y1, _, index = row
        return {"image_id": image, "category_id": int(index), "bbox": [x0, y0, x1 - x0, y1 - y0], **more}

    gt = COCO()
    gt.dataset = {
        "images": [{"id": i} for i in labelled],
        "categories": [{"id": c} for c in range(CLASSES)],
        "annotations": [
            entry(i, row, id=next(number), iscrowd=int(row[4] == 0), area=(row[2] - row[0]) * (row[3] - row[1]))
            for i in labelled
            for row in rows_of(truth[i])
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        gt.createIndex()
        judge = COCOeval(gt, gt.loadRes([entry(i, r, score=r[4]) for i in labelled for r in rows_of(found[i])]), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert 0.05 < judge.stats[1] < 0.95
    assert_close(precision(found, truth), float(judge.stats[1]), atol=1e-9, rtol=0)


def plain_precision(found, truth):
    """Returns the mean average precision by loops over pairs of boxes."""

    def common(a, b):
        return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))

    def area(a):
        return (a[2] - a[0]) * (a[3] - a[1])

    scores = []
    for index in range(CLASSES):
        rows, total = [], 0
        for image in range(len(truth)):
            if truth[image].isnan().any():
                continue
            true = rows_of(truth[image], lambda row: row[5] == index)  # noqa: B023 - called at once
            taken, total = set(), total + sum(row[4] for row in true)
            mine = rows_of(found[image], lambda row: row[5] == index)  # noqa: B023
            for box in sorted(mine, key=lambda row: -row[4]):
                best, which = 0.5, None
                for k, other in enumerate(true):
                    overlap = common(box, other) / (area(box) + area(other) - common(box, other))
                    if other[4] and k not in taken and overlap >= best:
                        best, which = overlap, k
                if which is not None:
                    taken.add(which)
                    rows.append((box[4], 1))
                elif not any(o[4] == 0 and common(box, o) / area(box) >= 0.5 for o in true):
                    rows.append((box[4], 0))
        if not total:
            continue
        rows.sort(key=lambda row: -row[0])  # Stable: equal scores keep the order of images.
        hits = [sum(right for _, right in rows[: n + 1]) for n in range(len(rows))]
        curve = [(hit / total, hit / (n + 1)) for n, hit in enumerate(hits)]
        at = [max([p for recall, p in curve if recall >= k / 100 - 1e-12], default=0) for k in range(101)]
        scores.append(sum(at) / 101)
    return sum(scores) / len(scores)


@pytest.mark.parametrize("seed", range(6, 12))
def test_precision_is_that_of_plain_loops(seed):
    found, truth = random_boxes(seed)
    whole = precision(found, truth)
    assert_close(whole, plain_precision(found, truth), atol=1e-9, rtol=0)
    assert precision(found, truth, (1, 3, 9)) == whole


def test_precision_by_hand():
    truth, found = torch.zeros(2, 1, ROWS, 6)
    truth[0, :2] = torch.tensor([[0, 0, 10, 10, 1, 0], [20, 20, 30, 30, 1, 0]])
    found[0, 0], found[0, 1] = torch.tensor([[0, 0, 10, 5, 0.9, 0], [50, 50, 60, 60, 0.8, 0]])
    # The first overlaps by exactly one half; one of two is found: recalls 0 to 0.5 at precision 1.
    assert_close(precision(found, truth, ()), 51 / 101)
    found[0, 0, 3] = 4.9
    assert precision(found, truth, ()) == 0
    assert math.isnan(precision(found, torch.zeros_like(truth), ()))
    found[0, 0, 4] = NAN
    assert math.isnan(precision(found, truth, ()))


def test_of_equally_good_boxes_the_last_is_taken_and_crowds_take_any_number():
    things = np.array([[0.0, 0, 10, 10], [2, 0, 12, 10]])
    boxes = np.array([[1.0, 0, 11, 10], [-3, 0, 7, 10], [40, 0, 50, 10], [41, 0, 51, 10], [20, 0, 25, 5]])
    # The first overlaps both alike. As it takes the last, the second still finds its own.
    assert matches(boxes, things, np.array([[38.0, 0, 60, 20]])).tolist() == [1, 1, -1, -1, 0]


def random_poses(seed, images=9):
    """Returns found and true rows (images, ROWS, 5 + 3 JOINTS); some people are to be ignored, some points unknown."""
    generator = np.random.default_rng(seed)
    truth, found = np.zeros((2, images, ROWS, 5 + 3 * JOINTS))
    for image in range(images):
        for rows, most in ((truth, 4), (found, 6)):
            for row in range(generator.integers(0, most)):
                points = generator.integers(0, 12, (JOINTS, 2))
                seen = generator.integers(0, 3, (JOINTS, 1)) if rows is truth else np.full((JOINTS, 1), 2)
                rows[image, row, :4] = 0, 0, *generator.integers(8, 16, 2)
                rows[image, row, 4] = generator.random() > 0.2 if rows is truth else generator.integers(1, 5) / 4
                rows[image, row, 5:] = np.concatenate([points, seen], 1).ravel()
    truth[0], truth[1] = 0, NAN
    return torch.tensor(found, dtype=torch.float32), torch.tensor(truth, dtype=torch.float32)


def share(found, truth, reach=0.5):
    metric = CorrectKeypoints(Given(), share=reach)
    for f, t in zip(found.tensor_split((4,)), truth.tensor_split((4,)), strict=True):
        metric.update(f, t)
    return metric.compute()["pck_0.5@1"]


@pytest.mark.parametrize("seed", range(6))
def test_correct_keypoints_are_those_of_the_best_of_all_assignments(seed):
    found, truth = random_poses(seed)
    hits = total = 0
    for poses, people in zip(found.tolist(), truth.tolist(), strict=True):
        people = [row for row in people if row[2] > row[0]]
        best = sorted(poses, key=lambda row: -row[4])[: len(people)]

        def right(pose, person):
            reach = 0.5 * max(person[2] - person[0], person[3] - person[1])
            pairs = [(pose[k : k + 3], person[k : k + 3]) for k in range(5, len(person), 3)]
            return sum(person[4] > 0 < b[2] and a[2] > 0 and math.dist(a[:2], b[:2]) <= reach for a, b in pairs)

        orders = itertools.permutations(best)
        hits += max(sum(map(right, order, people)) for order in orders)
        total += sum(row[k] > 0 for row in people if row[4] for k in range(7, len(row), 3))
    assert 0 < hits < total
    assert_close(share(found, truth), hits / total)


def test_correct_keypoints_by_hand():
    truth, found = torch.zeros(2, 1, 2, 5 + 3 * JOINTS)
    points = torch.tensor([[0.0, 0, 2], [4, 0, 1], [0, 4, 2], [9, 9, 0]])
    truth[0, 0] = torch.cat([torch.tensor([0.0, 0, 10, 4, 1]), points.flatten()])
    found[0, 0] = truth[0, 0]
    found[0, 0, 5] = 5  # Exactly half of the longer side away.
    found[0, 0, 9] = 5.1
    assert_close(share(found, truth), 2 / 3)
    # As many poses count as there are people: a second one cannot help.
    found[0, 1], found[0, 1, 4] = truth[0, 0], 0.5
    assert_close(share(found, truth), 2 / 3)
    assert math.isnan(share(found, torch.zeros_like(truth)))
    found[0, 0, 5] = NAN
    assert math.isnan(share(found, truth))


def _on_a_rank(_):
    """Returns the scores of this rank's share: every second image, and none at all on rank 1 of the second pair."""
    rank, scores = distributed.get_rank(), []
    for images in (11, 1):
        boxes, metric = random_boxes(3), AveragePrecision(Given(), CLASSES)
        poses, other = random_poses(3), CorrectKeypoints(Given(), share=0.5)
        for image in range(rank, images, 2):
            metric.update(boxes[0][image : image + 1], boxes[1][image : image + 1])
            if image < 9:
                other.update(poses[0][image : image + 1], poses[1][image : image + 1])
        scores += [metric.compute()["detection_map50@1"], other.compute()["pck_0.5@1"]]
    return scores


def test_two_ranks_score_as_one_process_to_the_last_bit(pool):
    one, two = pool.call(_on_a_rank, None)
    (found, truth), (poses, people) = random_boxes(3), random_poses(3)
    assert one[:2] == two[:2] == [precision(found[:11], truth[:11]), share(poses, people)]
    assert all(math.isnan(score) for score in (*one[2:], *two[2:]))

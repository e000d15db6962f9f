"""Sharing over the frames of a clip."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.sharing.curve import ThresholdCurve
from mtlbench.networks.sharing.network import SharingNetwork
from mtlbench.networks.sharing.video import Frame, VideoTask, play
from mtlbench.tasks import Depth, Normals, SemanticSegmentation, Task

KINDS = (SemanticSegmentation("semseg", classes=5), Depth("depth"), Normals("normals"))
TASKS: dict[str, Task] = {task.name: task for task in KINDS}
WIDTH, DEPTH, PATCHES, TOKENS = 16, 3, 6, 7
MODEL: dict[str, Any] = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_options": {"patch_size": 8, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2},
    "image_size": [16, 24],
    "decoder_channels": 8,
}
LINEAR = TOKENS * WIDTH * WIDTH * (3 + 1 + 4 + 4)
"""Multiply-adds of the linear layers of a block."""
DENSE = PATCHES * 3 * 8 * 8 * WIDTH + DEPTH * (LINEAR + 2 * TOKENS * TOKENS * WIDTH)
"""Multiply-adds of the encoder."""


def sub_network(base: DenseNetwork, task: str, dtype: torch.dtype = torch.float32) -> SharingNetwork:
    """Returns a network with a fifth of its weights changed, enough to be seen."""
    network = SharingNetwork({task: TASKS[task]}, **MODEL).to(dtype)
    network.take(base)
    generator = torch.Generator().manual_seed(5)
    for _, delta in network.deltas.named():
        noise, draw = (torch.randn(delta.value.shape, generator=generator).to(dtype) for _ in range(2))
        delta.value.data = 0.2 * noise
        delta.logit.data = torch.where(draw > 0.8, 5.0, -5.0).to(dtype)
    network.deltas.settle()
    return network.eval()


class Family:
    """A base task and two sub-tasks, and the same three as ordinary networks."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        torch.manual_seed(0)
        base = DenseNetwork({"semseg": TASKS["semseg"]}, **MODEL).to(dtype).eval()
        self.subs = {task: sub_network(base, task, dtype) for task in ("depth", "normals")}
        self.plain: dict[str, DenseNetwork] = {"semseg": base}
        for task, sub in self.subs.items():
            plain = copy.deepcopy(base)
            names = {name.removeprefix("encoder."): weight for name, weight in sub.weights().items()}
            plain.encoder.load_state_dict({**plain.encoder.state_dict(), **names})
            plain.neck, plain.heads = sub.neck, sub.heads
            self.plain[task] = plain
        self.tasks = {"semseg": VideoTask.alone(copy.deepcopy(base), "semseg")}
        self.tasks |= {task: VideoTask.changed(sub, task) for task, sub in self.subs.items()}

    def frame_by_frame(self, image: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return {task: network(image, [task]).predictions[task] for task, network in self.plain.items()}


@pytest.fixture(scope="module")
def family() -> Family:
    return Family()


def clips(count: int = 2, frames: int = 6, speed: int = 1) -> list[Tensor]:
    """Returns a pattern that moves to the right over a ground at rest, with a new one in every clip."""
    generator = torch.Generator().manual_seed(3)
    ground = torch.randint(0, 200, (count, 3, 16, 24), generator=generator, dtype=torch.uint8)
    patch = torch.randint(0, 255, (count, 3, 6, 6), generator=generator, dtype=torch.uint8)
    shown = []
    for t in range(frames):
        image = ground.clone()
        image[..., 5:11, 4 + t * speed : 10 + t * speed] = patch
        shown.append(image)
    return shown


def run(family: Family, frames: list[Tensor], threshold: Any, distance: int, blocks: int = 1) -> list[Frame]:
    return list(play(family.tasks, "semseg", frames, threshold=threshold, distance=distance, shared_blocks=blocks))


@pytest.mark.parametrize("blocks", [0, 1, DEPTH])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_threshold_zero_is_frame_by_frame(dtype: torch.dtype, tolerance: float, blocks: int) -> None:
    family = Family(dtype)
    frames = clips()
    for image, frame in zip(frames, run(family, frames, 0.0, 3, blocks), strict=True):
        truth = family.frame_by_frame(image)
        assert set(frame.predictions) == set(truth)
        for task, value in truth.items():
            torch.testing.assert_close(frame.predictions[task], value, atol=tolerance, rtol=tolerance)
    assert (truth["depth"] - family.frame_by_frame(frames[0])["depth"]).abs().max() > 1e-3


@pytest.mark.parametrize("blocks", [0, 1, DEPTH])
def test_an_infinite_threshold_holds_the_base_of_the_key_frame(family: Family, blocks: int) -> None:
    frames = clips()
    maps: list[Tensor] = []
    base = family.plain["semseg"]
    for number, frame in enumerate(run(family, frames, math.inf, 4, blocks)):
        assert frame.lag == number % 4
        if frame.lag == 0:
            with torch.no_grad():
                maps = base.encoder(base.encoder.normalise(frames[number]))
        for task, network in family.plain.items():
            with torch.no_grad():
                expected = network.heads[task](network.neck(maps))
            torch.testing.assert_close(frame.predictions[task], expected, atol=1e-5, rtol=1e-5)
    for frame in run(family, frames, math.inf, 4, 0):
        if frame.lag:
            assert not any(macs.any() for macs in frame.macs.values())


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5])
def test_distance_one_is_sharing_on_images(family: Family, threshold: float) -> None:
    frames = clips()
    shown = run(family, frames, threshold, 1)
    for task, network in family.subs.items():
        network.threshold = threshold
        curve = ThresholdCurve({task: TASKS[task]}, [threshold])
        for image, frame in zip(frames, shown, strict=True):
            with torch.no_grad():
                expected = network(image, [task]).predictions[task]
            torch.testing.assert_close(frame.predictions[task], expected, atol=0, rtol=0)
            curve.update(network, image, {task: TASKS[task].blank(16, 24).expand(2, *TASKS[task].blank(16, 24).shape)})
        (point,) = curve.compute(network)
        macs = torch.stack([frame.macs[task] for frame in shown]).mean()
        assert 2 * float(macs) == pytest.approx(point["flops"], rel=1e-9)
    for frame in shown:
        decoder = family.tasks["semseg"].decoder_macs([])
        assert frame.macs["semseg"].tolist() == [DENSE + decoder] * 2


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_a_still_clip_costs_nothing_after_its_first_frame(family: Family, threshold: float) -> None:
    frames = clips(frames=4, speed=0)
    first, *rest = run(family, frames, threshold, 4, 0)
    for frame in rest:
        for task in family.tasks:
            assert torch.equal(frame.predictions[task], first.predictions[task])
            assert frame.macs[task].tolist() == [0, 0] and (first.macs[task] > 0).all()


def test_in_shared_blocks_a_still_sub_task_pays_for_its_changes_alone(family: Family) -> None:
    """With an infinite threshold on the activations, what is left are the weights of the blocks that share."""
    places = ("pixels", "tokens", *(p for p in family.tasks["depth"].encoder.places if p.startswith("block")))
    _, frame = run(family, clips(frames=2, speed=0), dict.fromkeys(places, math.inf), 2, 2)
    encoder, kept = family.subs["depth"].encoder, family.subs["depth"].deltas.kept()
    mine = [x for place, x in encoder.layers().items() if place == "tokens" or place[5] in "01"]
    assert len(mine) == 1 + 2 * 4
    assert frame.macs["depth"].tolist() == [sum(int(kept[x.weight]) * x.tokens for x in mine)] * 2


def test_what_changes_is_what_is_paid(family: Family) -> None:
    """One pixel of one clip changes, the tokens are held: three inputs of the embedding, times its outputs."""
    first = clips(frames=1)[0]
    second = first.clone()
    second[1, :, 3, 3] += 40
    encoder = family.tasks["semseg"].encoder
    held = dict.fromkeys(encoder.places, math.inf) | {"pixels": 0.0}
    _, frame = run(family, [first, second], held, 2, 0)
    for task in family.tasks:
        assert frame.macs[task].tolist() == [0, 3 * WIDTH]
    everything = run(family, [first, 255 - first], 0.0, 2, 0)[1]
    # All but the class token where the first norm has made it: it does not know the image yet.
    known = WIDTH * 3 * WIDTH
    assert everything.macs["semseg"].tolist() == [DENSE - known + family.tasks["semseg"].decoder_macs([])] * 2


def test_clips_side_by_side_do_not_know_of_each_other(family: Family) -> None:
    frames = clips(count=3)
    together = run(family, frames, 0.2, 3)
    apart = [run(family, [image[i : i + 1] for image in frames], 0.2, 3) for i in range(3)]
    for t, frame in enumerate(together):
        for task in family.tasks:
            alone = torch.cat([one[t].predictions[task] for one in apart])
            torch.testing.assert_close(frame.predictions[task], alone, atol=1e-5, rtol=1e-5)
            assert frame.macs[task].tolist() == pytest.approx([float(one[t].macs[task]) for one in apart], rel=1e-3)


def test_thresholds_and_distances_save(family: Family) -> None:
    frames = clips()

    def total(threshold: float, distance: int) -> float:
        return sum(float(m.sum()) for frame in run(family, frames, threshold, distance, 1) for m in frame.macs.values())

    assert total(0.3, 6) < total(0.3, 3) < total(0.3, 1)
    assert total(1.0, 3) < total(0.3, 3) < total(0.05, 3) < total(0.0, 3)


def test_slow_changes_add_up_until_they_are_seen(family: Family) -> None:
    """A frame is held to what the one before used: not to what that one showed, or a slow change would be missed."""
    first = torch.full((1, 3, 16, 24), 100, dtype=torch.uint8)
    slow = [first, first + 3, first + 6, first + 9, first + 12]
    step = 3 / 255 / float(family.plain["semseg"].encoder.std.max())
    thresholds = dict.fromkeys(family.tasks["semseg"].encoder.places, 0.0) | {"pixels": 1.5 * step}
    for blocks in (0, 1):
        shown = [frame.predictions["depth"] for frame in run(family, slow, thresholds, 5, blocks)]
        assert [torch.equal(a, b) for a, b in zip(shown, shown[1:], strict=False)] == [True, False, True, False]


def test_frames_between_are_held_to_the_previous_one(family: Family) -> None:
    """There and back: what has returned differs from the previous frame, not from the key frame."""
    there = clips(frames=1)[0]
    away, back = 255 - there, there
    costs = [frame.macs["semseg"].min() for frame in run(family, [there, away, back, back], 0.0, 4, 0)]
    assert costs[2] > 0.9 * costs[0] and costs[3] == 0

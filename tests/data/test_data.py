"""Order, batches and evaluation: the same samples however many ranks, micro-batches and restarts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import distributed

from mtlbench.data import Collate, MTLDataModule, StepBatches
from mtlbench.data_modules import digits
from mtlbench.errors import DataError, SuiteError
from mtlbench.seeding import seed_of
from mtlbench.tasks import Classification, Depth, Regression, SemanticSegmentation

SIZE, BATCH, STEPS = 26, 8, 7


def batches(**options):
    return list(StepBatches(SIZE, BATCH, STEPS, 3, **options))


@pytest.mark.parametrize(("world", "micro"), [(1, 2), (2, 1), (2, 2), (4, 2), (8, 1)])
def test_ranks_and_micro_batches_share_one_batch(world, micro):
    single = batches()
    shares = [batches(rank=rank, world=world, micro=micro) for rank in range(world)]
    assert all(len(share) == STEPS * micro for share in shares)
    for step in range(STEPS):
        own = slice(step * micro, (step + 1) * micro)
        parts = list(itertools.chain.from_iterable(share[own] for share in shares))
        assert {len(part) for part in parts} == {BATCH // (world * micro)}
        assert sorted(itertools.chain.from_iterable(parts)) == sorted(single[step])


def test_micro_batches_are_cut_alike_on_all_rank_counts():
    one = batches(micro=2)
    two = [batches(micro=2, rank=rank, world=2) for rank in range(2)]
    for whole, *parts in zip(one, *two, strict=True):
        assert sorted(whole) == sorted(itertools.chain.from_iterable(parts))


@pytest.mark.parametrize("start", [0, 1, 3, 5, 6, 7])
def test_a_start_is_a_skip(start):
    assert batches(start=start, micro=2) == batches(micro=2)[2 * start :]


def test_every_epoch_is_a_permutation():
    found = batches()
    epochs = [list(itertools.chain.from_iterable(found[e * 3 : e * 3 + 3])) for e in range(2)]
    for number, pairs in enumerate(epochs):
        assert {epoch for epoch, _ in pairs} == {number}
        assert len({index for _, index in pairs}) == 24 and {index for _, index in pairs} <= set(range(SIZE))
    assert [i for _, i in epochs[0]] != [i for _, i in epochs[1]]
    assert found[6][0][0] == 2
    assert list(StepBatches(SIZE, BATCH, STEPS, 4))[0] != found[0], "another seed, another order"
    assert StepBatches(SIZE, BATCH, STEPS, 3).steps_per_epoch == 3


def test_the_length_is_that_of_the_whole_run():
    assert len(StepBatches(SIZE, BATCH, STEPS, 3, start=5, micro=2)) == 2 * STEPS


def test_mini_batches_are_equal_and_shared_by_ranks():
    one, two = batches(batches=3), [batches(batches=3, rank=rank, world=2) for rank in range(2)]
    assert {len(part) for part in one} == {2} and len(one) == 3 * STEPS
    for whole, *shares in zip(one, *two, strict=True):
        assert sorted(whole) == sorted(itertools.chain.from_iterable(shares)) and {len(s) for s in shares} == {1}
    # The first six of every batch of eight.
    assert [list(itertools.chain(*one[3 * k : 3 * k + 3])) for k in range(STEPS)] == [b[:6] for b in batches()]


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(SuiteError, match=r"batch_size 8 is not a multiple of 3 device\(s\) x 1 micro"):
        StepBatches(SIZE, BATCH, STEPS, 0, world=3)
    with pytest.raises(SuiteError, match=r"larger than the training set \(5 samples\)"):
        StepBatches(5, BATCH, STEPS, 0)
    with pytest.raises(SuiteError, match=r"gives 2 sample\(s\) for 4 device\(s\). Choose a multiple of 12"):
        StepBatches(SIZE, BATCH, STEPS, 0, world=4, batches=3)


def test_seeds_depend_on_every_part_in_order():
    seeds = [seed_of("a", 1, 2), seed_of("a", 2, 1), seed_of("b", 1, 2), seed_of("a", 12)]
    assert len(set(seeds)) == 4 and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of("order", 0, 0) == 4876581156571347824, "the same on every machine and in every version"


# ---- collate --------------------------------------------------------------------------------------------------------

TASKS = {
    "seg": SemanticSegmentation("seg", classes=3),
    "far": Depth("far"),
    "kind": Classification("kind"),
    "number": Regression("number"),
}


def sample(index, **targets):
    return {"image": torch.full((3, 4, 6), index, dtype=torch.uint8), "targets": targets, "id": f"s{index}"}


def test_collate_fills_blanks_and_counts():
    seg = torch.full((4, 6), 255)
    seg[0, :2] = 1
    far = torch.full((1, 4, 6), 2.0)
    far[0, 0, 0] = 255
    given = [sample(0, seg=seg, kind=torch.tensor(1)), sample(1, far=far, number=torch.tensor(2.5)), sample(2)]
    batch = Collate(TASKS)(given)
    assert batch["image"].shape == (3, 3, 4, 6) and batch["image"].dtype == torch.uint8
    assert batch["id"] == ["s0", "s1", "s2"]
    assert batch["counts"] == {"seg": 2, "far": 23, "kind": 1, "number": 1}
    assert all(type(count) is int for count in batch["counts"].values())
    assert torch.equal(batch["targets"]["seg"][0], seg) and batch["targets"]["seg"][1:].eq(255).all()
    assert torch.equal(batch["targets"]["far"][1], far) and batch["targets"]["far"][[0, 2]].eq(255).all()
    assert batch["targets"]["kind"].tolist() == [1, -1, -1]
    assert batch["targets"]["number"].isnan().tolist() == [True, False, True]


def test_collate_takes_the_tasks_of_the_run_only():
    batch = Collate({"kind": TASKS["kind"]})([sample(0, kind=torch.tensor(1), number=torch.tensor(1.0))])
    assert list(batch["targets"]) == ["kind"] == list(batch["counts"])


def test_collate_names_what_does_not_fit():
    other = {**sample(1), "image": torch.zeros(3, 4, 5, dtype=torch.uint8)}
    with pytest.raises(DataError, match=r"one size.*\(3, 4, 5\), \(3, 4, 6\).*s0, s1"):
        Collate(TASKS)([sample(0), other])
    with pytest.raises(DataError, match=r"s3: far: .*\(1, 4, 6\), found .*\(1, 6, 4\).*size of its image"):
        Collate(TASKS)([sample(3, far=torch.ones(1, 6, 4))])


# ---- data module ----------------------------------------------------------------------------------------------------


class Numbers(MTLDataModule):
    """Images that hold their own index; the augmentation adds a number drawn from its generator."""

    TASKS = {"number": Regression("number")}

    def samples(self, split):
        count = 12 if split == "train" else 7
        return [{**sample(i, number=torch.tensor(float(i))), "id": f"{split}{i}"} for i in range(count)]

    def augment(self, sample, generator):
        return {**sample, "targets": {"number": sample["targets"]["number"] + generator.random()}}


class _Trainer:
    def __init__(self, rank=0, world=1, step=0):
        self.global_rank, self.world_size, self.global_step = rank, world, step


def data(rank=0, world=1, step=0, **options):
    module = Numbers(**{"batch_size": 4, "steps": 9, **options})
    module.trainer = _Trainer(rank, world, step)
    return module


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_sample_is_evaluated_once(world):
    shares = [data(rank, world, batch_size=12).eval_dataloader("val") for rank in range(world)]
    ids = [i for share in shares for batch in share for i in batch["id"]]
    assert sorted(ids) == [f"val{i}" for i in range(7)]


def test_augmentation_is_a_function_of_seed_epoch_and_index():
    def labels(**options):
        loader = data(**options).train_dataloader()
        return [dict(zip(b["id"], b["targets"]["number"].tolist(), strict=True)) for b in loader]

    whole = labels()
    assert whole == labels(workers=1), "a worker process draws the same"
    assert labels(step=5) == whole[5:]
    halves = [labels(rank=rank, world=2, micro=2) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        parts = [half[2 * step + m] for half in halves for m in (0, 1)]
        assert {k: v for part in parts for k, v in part.items()} == batch
    first, second = whole[0], {k: v for batch in whole[3:6] for k, v in batch.items()}
    assert all(first[key] != second[key] for key in first), "another epoch, another draw"
    assert labels(seed=1) != whole


def test_epochs_are_counted_in_steps():
    assert data().steps_per_epoch() == 3
    assert data(batch_size=5).steps_per_epoch() == 2


def _evaluated(world):
    rank = distributed.get_rank()
    ids = [i for batch in data(rank, world).eval_dataloader("val") for i in batch["id"]]
    gathered = [None] * world
    distributed.all_gather_object(gathered, ids)
    return gathered


def test_ranks_agree_on_who_evaluates_what(pool):
    for gathered in pool.call(_evaluated, 2):
        assert sorted(itertools.chain.from_iterable(gathered)) == [f"val{i}" for i in range(7)]
        assert abs(len(gathered[0]) - len(gathered[1])) == 1


def test_the_order_does_not_read_the_global_generator():
    np.random.seed(0)
    first = batches()
    np.random.seed(1)
    assert batches() == first


def test_held_out_digits_share_no_digit_between_splits() -> None:
    plain, more = digits.Digits(train=9, val=9), digits.HeldOutDigits(train=9, val=9, test=9)
    assert [sample["id"] for sample in more.samples("test")][:2] == ["test-00000", "test-00001"]  # type: ignore[attr-defined]
    ranges = [set(range(*more.DIGITS[split])) for split in more.SPLITS]
    assert not set.intersection(*ranges[:2]) | set.intersection(*ranges[1:]) and len(set.union(*ranges)) == 1797
    assert torch.equal(plain.samples("train")[3]["image"], more.samples("train")[3]["image"])

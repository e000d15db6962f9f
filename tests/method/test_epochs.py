"""When an epoch ends and what order follows, counted from the data and not from the code that is tested."""

from dataclasses import replace

from mtlbench.balancing.base import Balancer
from mtlbench.data import MTLDataModule
from mtlbench.testing.toy import ToyData, toy_spec, trained
from tests.study.test_draws import EPOCHS
from tests.support.step_parts import Tiny

TINY = "tests.support.step_parts:Tiny"


def test_an_epoch_ends_after_the_step_that_reads_its_last_full_batch(tmp_path, monkeypatch):
    images = len(ToyData().samples("train"))
    per_epoch = images // 4
    seen = []
    monkeypatch.setattr(Balancer, "after_step", lambda self, ctx: seen.append((ctx.step, ctx.epoch)))
    monkeypatch.setattr(Balancer, "epoch_end", lambda self: seen.append("end"))
    trained(toy_spec(TINY, steps=2 * per_epoch + 1, batch_size=4), str(tmp_path))
    expected = []
    for step in range(2 * per_epoch + 1):
        expected.append((step, step // per_epoch))
        if step in (per_epoch - 1, 2 * per_epoch - 1):
            expected.append("end")
    assert per_epoch > 1 and seen == expected


class Shuffled(ToyData):
    """Toy data in the order of every other data module."""

    def train_dataloader(self):
        return MTLDataModule.train_dataloader(self)


class Reading(Tiny):
    """Keeps the samples of every micro-batch on this rank."""

    seen: list = []

    def regularisation(self, outputs, batch):
        Reading.seen.append([int(name.removeprefix("train-")) for name in batch["id"]])
        return {}


def samples_of(spec, folder, world, stop_at=None):
    Reading.seen.clear()
    trained(spec, folder, world=world, stop_at=stop_at)
    return list(Reading.seen)


def test_a_run_reads_another_order_in_every_epoch_also_after_a_stop_and_over_ranks(pool, tmp_path):
    """Ten samples in batches of four: two steps per epoch; the orders are those of `tests.study.test_draws`."""
    spec = toy_spec("tests.method.test_epochs:Reading", steps=6, batch_size=4, seed=5)
    spec = replace(spec, data={"module": "tests.method.test_epochs:Shuffled", "options": {"size": 10, "ragged": False}})
    expected = [order[at : at + 4] for order in EPOCHS for at in (0, 4)]
    assert samples_of(spec, str(tmp_path / "whole"), 1) == expected
    assert samples_of(spec, str(tmp_path / "cut"), 1, stop_at=5) == expected[:5]
    assert samples_of(spec, str(tmp_path / "cut"), 1) == expected[5:]
    one, two = pool.call(samples_of, spec, str(tmp_path / "ranks"), 2)
    assert one == [batch[::2] for batch in expected] and two == [batch[1::2] for batch in expected]

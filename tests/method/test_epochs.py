"""When an epoch ends, counted from the data and not from the code that is tested."""

from mtlbench.balancing.base import Balancer
from mtlbench.testing.toy import ToyData, toy_spec, trained

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

"""Labels of tokens and answers in a text: losses, scores against sklearn, floors by search, and refused values."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor

from mtlbench import distributed
from mtlbench.metrics import SpanOverlap, TokenAgreement
from mtlbench.metrics.tokens import best_span
from mtlbench.tasks import Span, TokenLabels, form_fault

TAGS = TokenLabels("tags", length=6, class_names=("O", "A", "B"), background="O")
PLAIN = TokenLabels("plain", length=6, class_names=("O", "A", "B"))
SPAN = Span("answer", length=6)


def labelled(count: int = 40) -> tuple[Tensor, Tensor]:
    """Returns scores (B, 3, 6) and labels (B, 6), a third of them missing."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (count, 6), generator=generator)
    target[torch.rand(count, 6, generator=generator) < 0.33] = -1
    return torch.randn(count, 3, 6, generator=generator), target


def test_the_loss_of_labels_is_that_of_every_labelled_token() -> None:
    scores, target = labelled(3)
    scores[target[:, None].expand_as(scores) == -1] = math.nan
    scores.requires_grad_()
    rows = [scores[b, :, n].log_softmax(0)[target[b, n]] for b, n in (target >= 0).nonzero().tolist()]
    loss = TAGS.loss(scores, target)
    assert loss.item() == pytest.approx(-sum(rows).item()) and TAGS.count(target) == len(rows)
    loss.backward()
    assert scores.grad is not None and scores.grad.isfinite().all()
    assert TAGS.count(TAGS.blank(0, 0)[None]) == 0 and form_fault(TAGS, target[0], 0, 0) is None


@pytest.mark.parametrize("task", [TAGS, PLAIN])
def test_f1_of_tokens_is_that_of_sklearn(task: TokenLabels) -> None:
    scores, target = labelled()
    metric = task.metric()
    for part in range(0, 40, 10):
        metric.update(scores[part : part + 10], target[part : part + 10])
    truth, guess = target[target >= 0], scores.argmax(1)[target >= 0]
    wanted = f1_score(
        truth, guess, **({"average": "macro"} if task is PLAIN else {"labels": [1, 2], "average": "micro"})
    )
    found = metric.compute()
    assert found[task.protocols[0].id] == pytest.approx(wanted)
    assert found["token_accuracy@1"] == pytest.approx(accuracy_score(truth, guess))


def test_predictions_of_a_shorter_batch_count_alike() -> None:
    scores, target = labelled(4)
    target[:, 4:] = -1
    whole, short = TAGS.metric(), TAGS.metric()
    whole.update(scores, target)
    short.update(scores[:, :, :4], target)
    assert whole.compute() == short.compute()
    assert torch.allclose(TAGS.loss(scores, target), TAGS.loss(scores[:, :, :4], target))


def test_nothing_to_find_is_perfect_and_no_label_is_nothing() -> None:
    metric = TokenAgreement(3, 0)
    assert math.isnan(metric.compute()["token_f1@1"])
    metric.update(torch.tensor([[[2.0], [0.0], [0.0]]]), torch.tensor([[0]]))
    assert metric.compute() == {"token_f1@1": 1.0, "token_accuracy@1": 1.0}
    metric.update(torch.full((1, 3, 1), math.nan), torch.tensor([[1]]))
    assert all(math.isnan(value) for value in metric.compute().values())


def test_the_floor_of_labels_is_the_best_choice_by_position() -> None:
    """All 3^4 choices are compared on the labels that the floor has seen."""
    task = TokenLabels("tags", length=4, class_names=("O", "A", "B"), background="O")
    generator = torch.Generator().manual_seed(3)
    chances = torch.tensor([[0.9, 0.08, 0.02], [0.6, 0.3, 0.1], [0.5, 0.1, 0.4], [0.97, 0.02, 0.01]])
    target = torch.stack([torch.multinomial(row, 60, replacement=True, generator=generator) for row in chances], 1)
    target[torch.rand(60, 4, generator=generator) < 0.3] = -1
    blind = task.blind()
    blind.update(target[:25])
    blind.update(target[25:])
    blind.reduce()

    def score(choice: Tensor) -> float:
        metric = task.metric()
        metric.update(torch.nn.functional.one_hot(choice, 3).T[None].expand(60, -1, -1).float(), target)
        return metric.compute()["token_f1@1"]

    best = max(score(torch.tensor(choice)) for choice in itertools.product(range(3), repeat=4))
    assert score(blind.prediction().argmax(0)) == pytest.approx(best) and best > 0


def test_the_best_span_is_that_of_all_pairs() -> None:
    scores = torch.randn(50, 2, 6, generator=torch.Generator().manual_seed(1))
    for one, found in zip(scores, best_span(scores).tolist(), strict=True):
        pairs = [(a, b) for a in range(6) for b in range(a, 6)]
        assert tuple(found) == max(pairs, key=lambda pair: float(one[0, pair[0]] + one[1, pair[1]]))


def test_the_loss_of_an_answer_leaves_out_padding_and_missing_answers() -> None:
    scores = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(2))
    target = torch.tensor([[1, 2, 0, 4], [-1, -1, 0, 5], [0, 0, 0, 1]])
    wanted = (
        -(scores[0, 0, :4].log_softmax(0)[1] + scores[0, 1, :4].log_softmax(0)[2]) / 2
    )  # The last text has one token.
    bad = scores.clone()
    bad[0, :, 4], bad[1], bad[2, :, 1:] = 100.0, math.nan, 100.0
    bad.requires_grad_()
    loss = SPAN.loss(bad, target)
    assert loss.item() == pytest.approx(wanted.item()) and SPAN.count(target) == 2
    loss.backward()
    assert bad.grad is not None and bad.grad.isfinite().all() and not bad.grad[0, :, 4].any()
    assert SPAN.loss(scores, SPAN.blank(0, 0).expand(3, -1)).item() == 0 and SPAN.count(SPAN.blank(0, 0)[None]) == 0


def test_f1_of_answers_is_that_of_their_tokens() -> None:
    generator = torch.Generator().manual_seed(4)
    scores = torch.randn(60, 2, 6, generator=generator)
    count = torch.randint(2, 7, (60,), generator=generator)
    first = (torch.rand(60, generator=generator) * count).long()
    last = first + (torch.rand(60, generator=generator) * (count - first)).long()
    begin = first // 2
    target = torch.stack([first, last, begin, count], 1)
    target[::7, :2] = -1
    metric, f1, exact = SpanOverlap(), [], []
    metric.update(scores[:20], target[:20])
    metric.update(scores[20:], target[20:])
    for one, (a, b, m, n) in zip(scores, target.tolist(), strict=True):
        if a >= 0:
            x, y = (best_span(one[None, :, m:n])[0] + m).tolist()
            truth, guess = ([int(i <= place <= j) for place in range(6)] for i, j in ((a, b), (x, y)))
            f1.append(f1_score(truth, guess))
            exact.append(truth == guess)
    found = metric.compute()
    assert found["span_f1@1"] == pytest.approx(sum(f1) / len(f1)) and 0 < sum(exact) < len(exact)
    assert found["exact_match@1"] == pytest.approx(sum(exact) / len(exact))
    metric.update(torch.full((1, 2, 6), math.nan), torch.tensor([[0, 0, 0, 2]]))
    assert math.isnan(metric.compute()["span_f1@1"])


def test_the_floor_of_an_answer_is_the_best_fixed_span() -> None:
    target = torch.tensor([[1, 2, 0, 6], [1, 3, 1, 5], [0, 1, 0, 2], [2, 2, 0, 3], [4, 5, 3, 6], [-1, -1, 0, 6]])
    blind = SPAN.blind()
    assert blind.prediction().isnan().all()
    blind.update(target)
    blind.reduce()

    def score(prediction: Tensor) -> float:
        metric = SPAN.metric()
        metric.update(prediction.expand(len(target), -1, -1), target)
        return metric.compute()["span_f1@1"]

    places = torch.arange(6)
    ends = [
        torch.stack([-(places - a).abs(), -(places - b).abs()]).float()
        for a in (0, 1, 2, 4)
        for b in (1, 2, 3, 5)
        if a <= b
    ]
    assert score(blind.prediction()) == pytest.approx(max(map(score, ends)))


def on_this_rank() -> list[object]:
    """Returns scores and floors of unequal shares: rank 0 sees 3 of 40 texts."""
    scores, labels = labelled()
    count = (labels >= 0).sum(1).clamp(min=1)
    spans = torch.stack([count // 3, count // 2, count // 4, count], 1).where(count[:, None] < 6, -1)
    found: list[object] = []
    for task, prediction, target in ((TAGS, scores, labels), (SPAN, scores[:, :2], spans)):
        share, every = slice(None), slice(distributed.rank(), None, distributed.world_size())
        if distributed.world_size() > 1:
            share = slice(0, 3) if distributed.rank() == 0 else slice(3, None)
        metric, blind = task.metric(), task.blind()
        metric.update(prediction[share], target[share])
        blind.update(target[every])
        blind.reduce()
        found += [metric.compute(), blind.prediction().tolist()]
    return found


def test_two_ranks_score_and_fit_as_one_process(pool: Any) -> None:
    one, two = pool.call(on_this_rank)
    assert one == two == on_this_rank()


@pytest.mark.parametrize(
    ("task", "target", "found"),
    [
        (TAGS, [0, 3, -1, -1, -1, -1], "classes are 0..2, or -1 for none. Found 3"),
        (SPAN, [2, 1, 0, 5], r"Found \[2, 1, 0, 5\]"),
        (SPAN, [0, 1, 1, 5], "begin <= first"),
        (SPAN, [0, 5, 0, 5], r"first <= last < end.*Found \[0, 5, 0, 5\]"),
        (SPAN, [0, 5, 0, 7], "at most the length"),
    ],
)
def test_values_that_are_refused(task: TokenLabels | Span, target: list[int], found: str) -> None:
    assert re.search(found, task.fault(torch.tensor([target])) or "")
    assert task.fault(torch.stack([task.blank(0, 0)] * 2)) is None


def test_captions() -> None:
    assert (
        TAGS.caption(torch.tensor([-1, 1, -1, 0]).numpy()) == "A O" and TAGS.caption(torch.tensor([-1]).numpy()) == "–"
    )
    assert SPAN.caption(torch.tensor([1, 2, 0, 4]).numpy()) == "tokens 1 to 2"
    assert SPAN.caption(SPAN.blank(0, 0).numpy()) == "–"
    beside = TAGS.decode_beside(torch.tensor([[[0.0, 2.0], [1.0, 0.0], [0.0, 0.0]]]), torch.tensor([[2, -1, -1]]))
    assert beside.tolist() == [[1, -1, -1]]

"""Matthews, F1 and correlations against scikit-learn and scipy, and exactly over ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as reference

from mtlbench import distributed
from mtlbench.errors import SuiteError
from mtlbench.metrics import ClassAgreement, Correlation
from mtlbench.tasks import Regression, ScoredClassification, ScoredRegression
from mtlbench.testing.rank_pool import RankPool

from data_modules.tabular.targets import read_targets  # isort: skip


def labels(classes: int, count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores that agree with the labels more often than not; every tenth label is missing."""
    generator = torch.Generator().manual_seed(classes)
    target = torch.randint(0, classes, (count,), generator=generator)
    scores = torch.randn(count, classes, generator=generator) + torch.nn.functional.one_hot(target, classes)
    return scores, torch.where(torch.arange(count) % 10 == 0, -1, target)


REFERENCES: dict[str, Any] = {
    "mcc": reference.matthews_corrcoef,
    "f1": reference.f1_score,
    "macro_f1": lambda truth, guess: reference.f1_score(truth, guess, average="macro"),
}


@pytest.mark.parametrize(("score", "classes"), [("mcc", 2), ("mcc", 5), ("f1", 2), ("macro_f1", 2), ("macro_f1", 5)])
def test_classes_agree_with_scikit_learn(score: str, classes: int) -> None:
    scores, target = labels(classes)
    metric = ClassAgreement(classes, score)
    for part in range(0, 200, 33):
        metric.update(scores[part : part + 33], target[part : part + 33])
    known = target >= 0
    wanted = REFERENCES[score](target[known].numpy(), scores[known].argmax(1).numpy())
    assert metric.compute() == {f"{score}@1": pytest.approx(wanted, abs=1e-12)}


def test_classes_at_the_edge() -> None:
    metric = ClassAgreement(2, "mcc")
    assert math.isnan(metric.compute()["mcc@1"])
    metric.update(torch.tensor([[0.0, 1.0]] * 3), torch.tensor([0, 1, 1]))
    assert metric.compute()["mcc@1"] == 0  # All predictions are one class.
    perfect = ClassAgreement(3, "macro_f1")
    perfect.update(torch.eye(3)[:2], torch.tensor([0, 1]))
    assert perfect.compute()["macro_f1@1"] == 1  # The third class has neither label nor prediction.
    metric.update(torch.tensor([[math.nan, 1.0]]), torch.tensor([1]))
    assert math.isnan(metric.compute()["mcc@1"])
    with pytest.raises(ValueError, match="two classes. Found 3"):
        ClassAgreement(3, "f1")


def numbers(count: int = 101) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 9, (count,), generator=generator).float()
    prediction = (target + 3 * torch.randn(count, generator=generator)).round()
    return prediction[:, None], torch.where(torch.arange(count) % 7 == 0, torch.nan, target)


def test_correlations_agree_with_scipy() -> None:
    prediction, target = numbers()
    task = Regression("n", mean=2.0, std=3.0)
    metric = Correlation(task)
    for part in range(0, 101, 20):
        metric.update(prediction[part : part + 20], target[part : part + 20])
    known = ~target.isnan()
    guess, truth = task.decode(prediction)[known].double().numpy(), target[known].double().numpy()
    wanted = {"pearson@1": stats.pearsonr(guess, truth)[0], "spearman@1": stats.spearmanr(guess, truth)[0]}
    assert metric.compute() == {key: pytest.approx(value, abs=1e-12) for key, value in wanted.items()}


def test_correlations_at_the_edge() -> None:
    metric = Correlation(Regression("n"))
    assert all(math.isnan(value) for value in metric.compute().values())
    metric.update(torch.ones(3, 1), torch.tensor([1.0, 2.0, 3.0]))
    assert set(metric.compute().values()) == {0.0}  # As the floor predicts.
    metric.update(torch.tensor([[math.nan]]), torch.tensor([math.nan]))
    assert set(metric.compute().values()) == {0.0}
    metric.update(torch.tensor([[math.nan]]), torch.tensor([1.0]))
    assert all(math.isnan(value) for value in metric.compute().values())
    same = Correlation(Regression("n"))
    same.update(torch.randn(3, 1), torch.ones(3))
    assert math.isnan(same.compute()["pearson@1"])


def shares(rank: int, world: int) -> list[dict[str, float]]:
    """The scores of a rank's share; of the last metric, the second rank has nothing."""
    scores, target = labels(3)
    classes = ClassAgreement(3, "mcc")
    classes.update(scores[rank::world], target[rank::world])
    prediction, wanted = numbers()
    found = [classes]
    for end in (70, 101):
        share = slice(None) if world == 1 else slice(0, end) if rank == 0 else slice(end, None)
        found.append(Correlation(Regression("n")))  # type: ignore[arg-type]
        found[-1].update(prediction[share].flip(0), wanted[share].flip(0))
    return [metric.compute() for metric in found]


def on_rank() -> list[dict[str, float]]:
    return shares(distributed.rank(), distributed.world_size())


def test_any_number_of_ranks_gives_the_same_scores(pool: RankPool) -> None:
    assert pool.call(on_rank) == [shares(0, 1)] * 2


def test_suites_name_scores() -> None:
    found = read_targets(
        {
            "ok": {"kind": "classification", "classes": [0, 1], "score": "mcc"},
            "near": {"kind": "regression", "score": "spearman", "mean": 2.5},
        }
    )
    ok, near = found["ok"].task, found["near"].task
    assert isinstance(ok, ScoredClassification) and [p.id for p in ok.protocols] == ["mcc@1", "accuracy@1"]
    assert isinstance(near, ScoredRegression)
    assert [p.id for p in near.protocols] == ["spearman@1", "pearson@1", "rmse@1"]
    assert ok.describe() != read_targets({"ok": {"kind": "classification", "classes": [0, 1]}})["ok"].task.describe()
    metric = near.metric()
    metric.update(torch.tensor([[0.0], [1.0]]), torch.tensor([2.5, 3.5]))
    assert metric.compute() == {"pearson@1": 1, "spearman@1": 1, "rmse@1": 0}
    with pytest.raises(SuiteError, match="score 'mc'.*mcc"):
        read_targets({"ok": {"kind": "classification", "classes": [0, 1], "score": "mc"}})
    with pytest.raises(SuiteError, match="f1 is a score of two classes. Found 3. Choose macro_f1"):
        read_targets({"ok": {"kind": "classification", "classes": [0, 1, 2], "score": "f1"}})
    assert np.isnan(ok.metric().compute()["mcc@1"])

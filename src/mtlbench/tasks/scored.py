"""Classifications and regressions with other scores than accuracy and RMSE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torchmetrics import Metric

from mtlbench.metrics import AbsoluteError, Accuracy, ClassAgreement, Correlation, Joint, SquaredError
from mtlbench.metrics.agreement import CLASS_SCORES, CORRELATIONS
from mtlbench.tasks.blind import Blind, Median
from mtlbench.tasks.image import NO_CLASS, Classification, Regression


@dataclass(frozen=True)
class ScoredClassification(Classification):
    """`Classification` with another score before the accuracy.

    Attributes:
        class_names: Names of the classes, in order.
        score: One of `SCORES`.
    """

    class_names: tuple[str, ...] = ()
    score: str = "mcc"
    SCORES: ClassVar[tuple[str, ...]] = CLASS_SCORES

    def metric(self) -> Metric:  # noqa: D102
        return Joint(ClassAgreement(self.classes, self.score, ignore=NO_CLASS), Accuracy(ignore=NO_CLASS))


@dataclass(frozen=True)
class ScoredRegression(Regression):
    """`Regression` with correlations before the RMSE.

    Attributes:
        score: The correlation that enters Δm, one of `SCORES`.
    """

    score: str = "pearson"
    SCORES: ClassVar[tuple[str, ...]] = CORRELATIONS

    def metric(self) -> Metric:  # noqa: D102
        return Joint(Correlation(self, self.score), SquaredError(self, unit=self.unit))


@dataclass(frozen=True)
class AbsoluteRegression(Regression):
    """`Regression` scored by the mean absolute error. The loss stays the squared error."""

    def metric(self) -> Metric:  # noqa: D102
        return AbsoluteError(self, unit=self.unit)

    def blind(self) -> Blind:
        """Returns the median, which has the least absolute error."""
        return Median(self.valid, link=lambda middle: (middle - self.mean) / self.std)

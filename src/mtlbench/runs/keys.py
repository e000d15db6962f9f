"""Names of the values that a run records over its steps and at its end, declared once. Needs no torch.

What computes a value takes its name from here; loggers pass it on, and dashboards find it again by its family.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_PARTS = {
    "split": "[a-z]+",
    "task": "[^/]+",
    "other": "[^/]+",
    "protocol": r"[^/]+@\d+",
    "layer": "[^/]+",
    "expert": r"\d+",
    "cost": "[^/]+",
    "condition": ".+",
    "table": "[^/]+",
    "part": "[^/]+",
    "figure": "[^/]+",
    "stream": "[^/]+",
}
"""What a placeholder of a family may stand for, as a regular expression."""


@dataclass(frozen=True)
class Family:
    """Values of one kind.

    Attributes:
        template: Name with placeholders, for example ``loss/{task}``.
        about: What the value is.
    """

    template: str
    about: str

    def key(self, **parts: Any) -> str:
        """Return the name of one value."""
        return self.template.format(**parts)

    def among(self, keys: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return those of some names that belong to this family, each with what its placeholders stand for."""
        fixed = re.split(r"\{(\w+)\}", self.template)
        pattern = "".join(
            f"(?P<{part}>{_PARTS[part]})" if number % 2 else re.escape(part) for number, part in enumerate(fixed)
        )
        found = ((key, re.fullmatch(pattern, key)) for key in keys)
        return {key: match.groupdict() for key, match in found if match}


AXIS = "trainer/global_step"
"""The step, in every tool that receives rows."""

LR = Family("lr", "learning rate of the first parameter group")
LOSS = Family("loss/{task}", "loss of the last batch")
SCORE = Family("{split}/{task}/{protocol}", "score on a split: during training, and at the end")
CONFLICTS = Family("gradient/conflicts", "share of pairs of tasks whose gradients conflict (negative cosine)")
SIMILARITY = Family("gradient/similarity", "similarity of gradient magnitudes")
CONDITION = Family("gradient/condition", "condition number of the unit gradients")
TURN = Family("gradient/turn", "angle between the update and the sum of gradients, in degrees")
COSINE = Family("gradient/cosine/{task}|{other}", "cosine of the gradients of two tasks")
NORM = Family("gradient/norm/{task}", "norm of a task's gradient")
WEIGHT = Family("gradient/weight/{task}", "weight of the gradient of a task in the update")
INFORMATION = Family("experts/{layer}/mutual_information", "mutual information of tasks and experts")
LOAD = Family("experts/{layer}/load/{expert}", "share of choices that an expert receives")
DISTILLATION = Family("distillation/{task}", "distance to the teacher of a task")
MIXING = Family("mixing/{stream}", "probability that a step draws a stream")
SHARED = Family("sharing/kept", "share of weights that a task changes")
REGIME = Family("regime/serial", "1 if tasks have a pass of their own, 0 if one pass serves all")

HISTORY = (
    LR, LOSS, SCORE, CONFLICTS, SIMILARITY, CONDITION, TURN, COSINE, NORM, WEIGHT, INFORMATION, LOAD, DISTILLATION,
    MIXING, SHARED, REGIME,
)  # fmt: skip
"""What shipped methods record over the steps. A method may add names of its own, see `MTLMethod.diagnostics`."""

COST = Family("cost/{cost}", "a cost of the run")
COST_OF_TASK = Family("cost/{cost}/{task}", "a cost of predicting one task alone")
USAGE = Family("experts/usage", "table: how often each task uses each expert")
PICTURE = Family("pictures/{task}", "truth and prediction of a task, side by side")
INPUT = Family("pictures", "input images of the pictures")

DELTA = Family("row/delta_m", "Δm of a row with one seed, in per cent")
RANK = Family("row/rank", "place of a row in the leaderboard")
ROW_SCORE = Family("row/score/{task}/{protocol}", "score of a row with one seed on the reported split")
ROW_COST = Family("row/cost/{cost}", "cost of one seed of a row, mean over seeds")
ROW_VALUE = Family("row/value/{condition}", "studied quantity of a row with one seed, by condition")
TRIAL_SCORE = Family("trial/score", "mean relative gain of a trial on the validation split, in per cent")
TABLE = Family("tables/{table}", "a table of the report")
FIGURE = Family("figures/{part}/{figure}", "a figure of the report")

STUDY = (DELTA, RANK, ROW_SCORE, ROW_COST, ROW_VALUE, TRIAL_SCORE, TABLE, FIGURE)
"""What the end of a bench adds: runs that stand for rows and trials, and one for the study."""


def flat(scores: Mapping[str, Mapping[str, float]], split: str) -> dict[str, float]:
    """Return scores as one level of names; values that are not numbers are left out."""
    return {
        SCORE.key(split=split, task=task, protocol=protocol): value
        for task, values in scores.items()
        for protocol, value in values.items()
        if value == value
    }


def final_values(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores and costs of a finished run by name.

    Args:
        result: Its ``result.json``.
    """
    found: dict[str, Any] = flat(result["validation"], "val") if result.get("validation") else {}
    found |= flat(result["scores"], result.get("split", "val"))
    for cost, value in result["cost"].items():
        if isinstance(value, Mapping):
            found |= {COST_OF_TASK.key(cost=cost, task=task): each for task, each in value.items()}
        elif value is not None:
            found[COST.key(cost=cost)] = value
    return found

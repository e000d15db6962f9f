"""The verdict: what a study shows, in sentences, made from the same statistics as its tables."""

from __future__ import annotations

from mtlbench.report.model import ConditionBoard, Leaderboard
from mtlbench.report.verdict.conditions import condition_verdict
from mtlbench.report.verdict.ranked import ranked_verdict
from mtlbench.report.verdict.words import Statement

__all__ = ["Statement", "verdict"]


def verdict(board: Leaderboard | ConditionBoard) -> tuple[Statement, ...]:
    """Returns what a study shows and what it cannot show, the most important statement first."""
    return ranked_verdict(board) if isinstance(board, Leaderboard) else condition_verdict(board)

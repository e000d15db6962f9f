"""``mtlbench check`` on what needs a folder, options or hyper-parameters."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtlbench.errors import ExitCode
from tests.support.command_line import mtlbench

OWN = """
from mtlbench.data_modules.digits import Digits

class Mine(Digits):
    def __init__(self, root=None, **options):
        if root is None:
            raise TypeError("expected str, bytes or os.PathLike object, not NoneType")
        super().__init__(root, **options)
        self.folder = root

    def missing(self):
        return [] if self.folder == "there" else [f"No digits in {self.folder}."]
"""


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        ([], ["Mine: expected str", "--data"]),
        (["--data", "elsewhere"], ["No digits in elsewhere.", "--data FOLDER"]),
        (["--data", "there", "--set", "trian=4"], ["trian", "--set KEY=VALUE"]),
        (["--data", "there", "--set", "train"], ["form KEY=VALUE", "'train'"]),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_option(words: list[str], facts: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine_too.py").write_text(OWN)
    answer = mtlbench(tmp_path, "check", "mine_too:Mine", *words)
    assert answer.code == ExitCode.REFUSED and all(fact in answer.text for fact in facts), answer.text


def test_folder_and_options_reach_the_data_module(tmp_path: Path) -> None:
    (tmp_path / "mine_too.py").write_text(OWN)
    answer = mtlbench(tmp_path, "check", "mine_too:Mine", "--data", "there", "--set", "train=16", "val=0")
    assert answer.code == ExitCode.FAILED and "Split val is empty" in answer.text, answer.text
    assert mtlbench(tmp_path, "check", "mine_too:Mine", "--data", "there", "--set", "train=16", "val=8").code == 0


def test_hyper_parameters_are_checked_by_name(tmp_path: Path) -> None:
    answer = mtlbench(tmp_path, "check", "cagrad", "--set", "cc=0.5")
    assert answer.code == ExitCode.REFUSED and "Unknown hyper-parameter 'cc'" in answer.text, answer.text

"""Lists of splits in the encodings and habits of editors and spreadsheets: read as meant, or named with their line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtlbench.data_modules.dense.lists import read_list
from mtlbench.data_modules.miniatures import write_nyud, write_taskonomy
from mtlbench.data_modules.nyud import Nyud
from mtlbench.data_modules.taskonomy import Taskonomy
from mtlbench.errors import DataError


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        (b"\xef\xbb\xbf1449\nb c\n", ["1449", "b c"]),
        ("1449\nb c\n".encode("utf-16"), ["1449", "b c"]),
        (b"\xfe\xff" + "1449\nb c\n".encode("utf-16-be"), ["1449", "b c"]),
        (b"1449\r\n\r\nb c\r\n", ["1449", "b c"]),
        (b"1449\rb c\r", ["1449", "b c"]),
        (b"# ids\n1449 1\nb c # two\n", ["1449", "b c"]),
        (b"\t1449  1 \n\nb\tc", ["1449", "b c"]),
        ("caf\xe9\n".encode("latin-1"), ["caf\xe9"]),
        ("caf\xe9 1\n".encode(), ["caf\xe9"]),
        (b"image 0\nimage 1\nimage 2\nother 1\n", ["image 0", "image 1", "image 2", "other"]),
        (b"", []),
    ],
)
def test_lists_are_read_as_they_are_meant(tmp_path: Path, content: bytes, ids: list[str]) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    assert read_list(tmp_path / "list.txt") == ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\xe9 1\nb -1\n".encode("latin-1"), "list.txt, line 2: .*'b -1'.*Remove"),
        (b"a\nb 0\n", "list.txt, line 2: .*'b 0'"),
        ("a\nb\n".encode("utf-16-le"), r"list.txt, line 1: .*U\+0000.*UTF-8"),
        ("a\n".encode("utf-32"), r"list.txt, line 1: .*U\+0000"),
        (b"\xff\xfea", "list.txt: a list is text. Found damaged UTF-16"),
        (b"a\n\x89PNG\x1a\n", r"list.txt, line 2: .*U\+001A"),
    ],
)
def test_what_is_no_list_is_named_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_list(tmp_path / "list.txt")


def test_a_list_with_capitals_and_one_that_repeats(tmp_path: Path) -> None:
    root = write_nyud(tmp_path, train=2, val=1)
    lists = root / "NYUD_MT" / "gt_sets"
    before = Nyud(str(root)).fingerprint()
    (lists / "train.txt").rename(lists / "Train.TXT")
    assert Nyud(str(root)).fingerprint() == before
    (lists / "Train.TXT").write_text("0001 1\n0002\n0001\n")
    assert "Train.TXT repeats 0001 (1 in all)" in Nyud(str(root)).missing()[0]
    (lists / "Train.TXT").unlink()
    assert "train.txt" in Nyud(str(root)).missing()[0], "the usual name is the one that is asked for"


def test_ids_with_endings_are_shown_what_lies_near(tmp_path: Path) -> None:
    root = write_nyud(tmp_path, train=2, val=1)
    (root / "NYUD_MT" / "gt_sets" / "train.txt").write_text("0001.jpg\n0002.jpg\n")
    assert "Near 0001.jpg.jpg lies 0001.jpg." in Nyud(str(root)).missing()[0]


def listed(root: Path, text: str) -> dict[str, list[str]]:
    path = root / "taskonomy" / "splits_taskonomy" / "train_val_test_tiny.csv"
    path.write_bytes(text.encode())
    return Taskonomy(str(root)).files.listed()  # type: ignore[attr-defined, no-any-return]


def test_tables_of_buildings_as_spreadsheets_write_them(tmp_path: Path) -> None:
    root = write_taskonomy(tmp_path, train=2, val=1, test=1)
    wanted = {"train": ["a"], "val": ["b"], "test": []}
    for text in (
        "id,train,val,test\ra,1,0,0\rb,0,1,0\r",
        "\ufeffid;train;val;test\r\na;1;0;0\r\nb;0;1,0;0\r\n".replace("1,0", "1.0"),
        "ID\tTrain\tVal\tTest\na\t1\t\t\nb\t\t1\t\n",
        'id,train,val,test\n"a", 1.0 , 0,0\n\n,,,\nb,0.0,1,0\n',
        "test,val,id,train,note\n0,0,a,1,large\n0,1,b,0,\n",
    ):
        assert listed(root, text) == wanted, text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,train,val,test\na,1,0,0\n\n\nb,0,yes,0\n", "line 5: .*'yes'"),
        ("id,train,val,test\na,1,0\n", "line 2: .*only 3 columns"),
        ("id,train,val,test\n,1,0,0\n", "line 2: .*no id"),
        ("a,1,0,0\n", r"begins with id,train,val,test. Found \['a', '1', '0', '0'\]"),
        ("", "begins with id,train,val,test"),
        ("id,train,val,test\na\0,1,0,0\n", r"line 2: .*U\+0000"),
        ("id,train,val,test\na,1,0,0" + "x" * 200_000, "line 2: "),
    ],
)
def test_a_table_of_another_form_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    root = write_taskonomy(tmp_path, train=2, val=1, test=1)
    with pytest.raises(DataError, match=f"train_val_test_tiny.csv.*{message}"):
        listed(root, text)

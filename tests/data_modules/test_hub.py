"""Saved data sets of the Hub and the tasks of GLUE: splits, missing labels, scores, identity, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest

from data_modules.glue import PARTS, Glue
from data_modules.hub import Hub
from data_modules.miniatures.glue import write_glue
from mtlbench import suite as suites
from mtlbench.cli import main
from mtlbench.errors import DataError, MtlbenchError, SuiteError
from mtlbench.testing import check_data_module
from tests.support.hub_reader import readable_hub, repository_of, use

TARGETS = {"mood": {"kind": "classification", "classes": ["bad", "good"]}}
STRING = datasets.Value("string")
FEATURES = datasets.Features({"text": STRING, "mood": datasets.ClassLabel(names=["bad", "good"]), "tags": [[STRING]]})


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLBENCH_CACHE", "off")


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glue(tmp_path_factory.mktemp("glue"))


def rows(count: int, start: int = 0, **changes: Any) -> datasets.Dataset:
    some = range(start, start + count)
    found = {"text": [f"text {i}" for i in some], "mood": [i % 2 for i in some], "tags": [[["a"]]] * count}
    return datasets.Dataset.from_dict({**found, **changes}, features=FEATURES)


def save(folder: Path, **splits: datasets.Dataset) -> Path:
    datasets.DatasetDict(splits).save_to_disk(str(folder / "saved"))
    return folder


def opened(folder: Path, **options: Any) -> Hub:
    return Hub(str(folder), **{"file": "saved", "targets": TARGETS, "length": 8, **options})


def sizes(data: Hub) -> list[int]:
    return [len(data.samples(split)) for split in data.SPLITS]


def test_every_task_of_glue_has_three_splits_and_its_scores(glue: Path) -> None:
    scores = {}
    for config in PARTS:
        data = Glue(str(glue), config=config)
        train, val, test = sizes(data)
        assert (train + val, test) == (60, 20) and 2 <= val <= 12 and data.missing() == []
        assert ("segments" in data.samples("test")[0]["inputs"]) == (len(PARTS[config].columns) > 1)
        assert "scores do not compare" in data.doubts("train")[0]
        scores[config] = [protocol.id for protocol in data.tasks[config].protocols]
    assert scores["cola"][0] == "mcc@1" and scores["mrpc"][:2] == scores["qqp"][:2] == ["f1@1", "accuracy@1"]
    assert scores["stsb"][:2] == ["pearson@1", "spearman@1"] and scores["mnli"] == ["accuracy@1"]
    assert all(len({p.partition("@")[0] for p in found}) == len(found) for found in scores.values())


def test_a_suite_names_every_task_of_glue() -> None:
    streams = suites.load("glue").data.options["streams"]
    assert [about["options"]["config"] for about in streams.values()] == list(PARTS) == list(streams)


def test_glue_refuses_what_it_cannot_serve() -> None:
    with pytest.raises(SuiteError, match="WNLI is left out: its validation split repeats training sentences"):
        Glue(config="wnli")
    with pytest.raises(SuiteError, match="task of GLUE 'sst'. Did you mean 'sst2'"):
        Glue(config="sst")
    with pytest.raises(SuiteError, match="Glue has fixed columns and splits. Found text"):
        Glue(text="sentence")


def test_parts_are_splits_or_shares_of_the_training_split(tmp_path: Path) -> None:
    save(tmp_path, train=rows(200), dev=rows(50, 500, mood=[-1] * 25 + [0] * 25), test=rows(10, 900))
    assert sizes(opened(tmp_path, parts={"val": "dev"})) == [200, 50, 10]
    train, val, test = sizes(opened(tmp_path, parts={"val": 0.25, "test": "dev"}))
    assert 30 <= val <= 70 and train == 200 - val and test == 50
    assert sizes(opened(tmp_path, parts={"val": 1000, "test": 0.2}))[1] < 40  # A number takes at most a tenth.
    val_samples = opened(tmp_path, parts={"val": "dev"}).samples("val")
    assert sum(not val_samples[i]["targets"] for i in range(50)) == 25
    options = {"file": "saved", "targets": TARGETS, "parts": {"val": "dev"}}
    assert all(finding.ok for finding in check_data_module("data_modules.hub:Hub", str(tmp_path), **options))


def test_pairs_with_the_same_first_text_are_in_one_part(tmp_path: Path) -> None:
    save(tmp_path, train=rows(200, text=[f"text {i // 4}" for i in range(200)]))
    frame = opened(tmp_path, parts={"val": 0.2, "test": 0.2})._frame
    assert frame.groupby("text")["part"].nunique().max() == 1 and set(frame["part"]) == {"train", "val", "test"}


def test_identity_is_content_not_files(tmp_path: Path) -> None:
    data = {"parts": {"test": 0.2}}
    one, two = save(tmp_path / "a", train=rows(50)), save(tmp_path / "b", train=rows(50))
    shutil.copy(two / "saved" / "dataset_dict.json", two / "saved" / "copy.json")
    assert opened(one, **data).fingerprint() == opened(two, **data).fingerprint()
    other = save(tmp_path / "c", train=rows(50, mood=[1, *(i % 2 for i in range(1, 50))]))
    assert opened(other, **data).fingerprint() != opened(one, **data).fingerprint()


def test_training_rows_without_a_text_are_left_out_and_counted(tmp_path: Path) -> None:
    save(tmp_path, train=rows(4, text=["a", " ", None, "b"]), test=rows(2, mood=[0, 1]), dev=rows(2, text=["a", ""]))
    data = opened(tmp_path, parts={"val": "test"})
    assert sizes(data)[0] == 2 and "2 training rows have no text" in data.doubts("train")[0] and not data.doubts("test")
    with pytest.raises(DataError, match="Every row needs a text.*1 of 6 rows"):
        opened(tmp_path, parts={"val": "dev"}).samples("val")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"file": "seved"}, "no .*seved. Correct data.options.file"),
        ({"text": "txt"}, "saved: Unknown column 'txt'. Did you mean 'text'"),
        ({"text": "tags"}, "a list of values or an answer per row. .*tags holds List"),
        ({"parts": {"test": "tset"}}, "Unknown split 'tset'. Did you mean 'test'"),
        ({"parts": {"val": 1.5}}, "parts says where.*Found .*1.5"),
        ({"parts": {"vla": "train"}}, "parts says where.*vla"),
        ({"parts": {"val": 0.6, "test": 0.5}}, "leave texts for training"),
        ({"split": {"column": "part"}}, "named in `parts`"),
        ({"name": "a/b"}, "Give one"),
        ({"file": ""}, "Give one"),
    ],
)
def test_faults_are_one_line(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    save(tmp_path, train=rows(20), test=rows(4))
    with pytest.raises(MtlbenchError, match=message) as found:
        opened(tmp_path, **options).samples("train")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("damage", ["shorter", "state", "empty"])
def test_a_folder_that_ends_early_or_is_another(damage: str, tmp_path: Path) -> None:
    save(tmp_path, train=rows(200), test=rows(4))
    (arrow,) = (tmp_path / "saved" / "train").glob("*.arrow")
    if damage == "shorter":
        arrow.write_bytes(arrow.read_bytes()[: arrow.stat().st_size // 3])
    elif damage == "state":
        (tmp_path / "saved" / "train" / "state.json").write_text("{")
    else:
        shutil.rmtree(tmp_path / "saved")
        (tmp_path / "saved").mkdir()
    with pytest.raises(DataError, match="folder that save_to_disk .* wrote. .*saved: .*fetch or save it again"):
        opened(tmp_path).samples("train")


def test_the_command_fetches_and_verifies(
    glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "own.yaml"
    data = "{module: 'data_modules.glue:Glue', options: {config: rte}}"
    model = "model: {encoder: 'transformers:bert'}\ntrainer: {steps: 1}\nmethods: [uniform]\n"
    suite.write_text(f"name: own\nversion: 1\ndata: {data}\n{model}")
    command = ["data", str(suite), "--data", str(tmp_path / "data")]
    assert main(command) == 2
    shown = capsys.readouterr().out
    assert "There is no" in shown and "--download --agree" in shown and "save_to_disk('saved')" in shown
    rte = datasets.load_from_disk(str(glue / "hub" / "nyu-mll--glue" / "rte"))
    with readable_hub({"datasets/nyu-mll/glue": repository_of({"rte": rte})}) as server:
        use(monkeypatch, server.url, tmp_path / "cache")
        assert main([*command, "--download"]) == 2 and "agreeing to its terms" in capsys.readouterr().err
        assert main([*command, "--download", "--agree", "--verify"]) == 0
    shown = capsys.readouterr().out
    assert "nyu-mll/glue rte" in shown and " fetched\n" in shown and shown.count(", 0 faulty") == 3
    assert Glue(str(tmp_path / "data"), config="rte").fingerprint() == Glue(str(glue), config="rte").fingerprint()

"""Samples streamed from shards: those of the files, in the same order, on a disk that holds few of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mtlbench import suite as suites
from mtlbench.data import remote
from mtlbench.data.space import BLOCK
from mtlbench.data_modules.dense import shards as module
from mtlbench.data_modules.miniatures import write_taskonomy
from mtlbench.data_modules.taskonomy import Taskonomy
from mtlbench.errors import DataError, SuiteError
from mtlbench.runs.spec import RunSpec
from mtlbench.study import resolve as studies
from mtlbench.testing import check_data_module, difference, toy_spec, trained
from tests.support.command_line import mtlbench

TASKS = {name: Taskonomy.TASKS[name] for name in ("normal", "class_object", "keypoints2d")}
OPTIONS: dict[str, Any] = {"size": [16, 24], "window": 2, "shard": 4}
SIZES = {"train": 26, "val": 9, "test": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_taskonomy(tmp_path_factory.mktemp("taskonomy"), **SIZES)


@pytest.fixture(scope="module")
def url(root: Path) -> str:
    url = f"file://{root}/shards"
    assert files(root).shard(url) == 7 + 3 + 1
    return url


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    monkeypatch.setenv("MTLBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shards"


def files(root: Path, **options: Any) -> Taskonomy:
    return Taskonomy(str(root), tasks=TASKS, **{**OPTIONS, **options})


def streamed(url: str, **options: Any) -> Taskonomy:
    return Taskonomy(None, source=url, **{"tasks": TASKS, **OPTIONS, **options})


def started(data: Taskonomy, rank: int = 0, world: int = 1, step: int = 0, **changes: Any) -> Taskonomy:
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world, global_step=step)  # type: ignore[assignment]
    for name, value in {"batch_size": 4, "steps": 12, "seed": 5, **changes}.items():
        setattr(data, name, value)
    return data


def same(one: Any, other: Any) -> None:
    assert one["id"] == other["id"] and torch.equal(one["inputs"], other["inputs"]) and one["counts"] == other["counts"]
    for task, target in one["targets"].items():
        assert torch.equal(target.nan_to_num(7.5), other["targets"][task].nan_to_num(7.5)), task


def on_disk(place: Path) -> int:
    """Returns the bytes of all files, but for those that a thread which reads ahead removes meanwhile."""
    total = 0
    for path in place.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512 if path.is_file() else 0
    return total


def least(url: str) -> float:
    """Returns the smallest space, in GB, that is accepted."""
    data = streamed(url, space=1e-9)
    (line,) = data.missing()
    parts = [module.row_bytes(data.files.index, part) for part in ("image", *(f"label-{task}" for task in TASKS))]
    room = (2 + module.MARGIN) * sum(-(-(128 + 4 * size) // BLOCK) * BLOCK for size in parts) / 2**30
    assert (
        "for every run that trains at the same time. 2 + 2 shards of" in line and "data.options.space is 1e-09" in line
    )
    assert streamed(url, space=room * 0.999).missing() and not streamed(url, space=room).missing()
    return room


def test_a_pass_reads_the_batches_of_the_files_on_a_bounded_disk(
    root: Path, url: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, reads = least(url), []
    read = remote.Remote.read
    monkeypatch.setattr(remote.Remote, "read", lambda self, name, *sum_: reads.append(name) or read(self, name, *sum_))
    data = started(streamed(url, space=room), steps=12)
    largest = 0
    for one, other in zip(started(files(root), steps=12).train_dataloader(), data.train_dataloader(), strict=True):
        same(one, other)
        largest = max(largest, on_disk(cache))
    assert 0.5 * room * 2**30 < largest <= room * 2**30 < on_disk(root / "shards") / 2
    images = sum(name.endswith("image.npy") for name in reads)
    assert 7 <= images / 2 <= 7 + 2 + 2, "of 7 shards in a pass; those with which it begins come again at its end"


def test_evaluation_and_fitting_read_every_sample_once_and_shard_by_shard(root: Path, url: str) -> None:
    one, other = started(files(root)), started(streamed(url))
    for split in ("val", "test"):
        for loaders in zip(one.eval_dataloader(split), other.eval_dataloader(split), strict=True):
            same(*loaders)
    shares = [list(started(streamed(url), rank, 2).fitting_dataloader()) for rank in range(2)]
    ids = [i for share in shares for batch in share for i in batch["id"]]
    assert sorted(ids) == sorted(one.files.ids("train")) and len(ids) == SIZES["train"]
    for loaders in zip(started(files(root), 1, 2).fitting_dataloader(), shares[1], strict=True):
        same(*loaders)


def test_ranks_and_workers_read_their_parts_and_a_start_is_a_skip(url: str) -> None:
    whole = list(started(streamed(url)).train_dataloader())
    ranks = [list(started(streamed(url), rank, 2).train_dataloader()) for rank in range(2)]
    for batch, *shares in zip(whole, *ranks, strict=True):
        parts = [share["id"] for share in shares]
        assert not set(parts[0]) & set(parts[1]) and sorted(itertools.chain(*parts)) == sorted(batch["id"])
    for batch, later in zip(whole[5:], started(streamed(url), step=5, workers=2).train_dataloader(), strict=True):
        same(batch, later)


def spec_of(place: Path | str) -> RunSpec:
    """Returns a run on files in a folder, or on shards below a URL."""
    spec = toy_spec("uniform", steps=9)
    where = {"root": str(place)} if isinstance(place, Path) else {"data": {"source": place}}
    return replace(
        spec,
        data={"module": "data_modules.taskonomy:Taskonomy", "options": OPTIONS},
        tasks={name: task.describe() for name, task in TASKS.items()},
        local={**spec.local, **where},
    )


def test_a_run_on_shards_is_that_on_files_also_if_it_stops_in_the_middle_of_a_pass(
    root: Path, url: str, tmp_path: Path
) -> None:
    spec = spec_of(url)
    whole = trained(spec, str(tmp_path / "one"))
    assert trained(spec, str(tmp_path / "broken"), stop_at=4) is None
    assert difference(whole, trained(spec, str(tmp_path / "broken"))) == 0
    assert spec.hash == spec_of(root).hash and difference(whole, trained(spec_of(root), str(tmp_path / "files"))) == 0


def resolved(folder: Path, *words: str, data: str | None = None) -> RunSpec:
    suite = suites.load("taskonomy", ["methods=[uniform]", "trainer.batch_size=4", "data.options.size=28", *words])
    return studies.resolve(suite, studies.Local(data=data), []).specs[0]


def test_identity_knows_the_order_and_not_the_place(root: Path, tmp_path: Path) -> None:
    window = ("data.options.window=2", "data.options.shard=8")
    source = f"data.options.source={tmp_path}/shards"
    answer = mtlbench(
        tmp_path,
        "data",
        "taskonomy",
        "--data",
        str(root),
        "--shard",
        f"{tmp_path}/shards",
        *window,
        "data.options.size=28",
    )
    assert answer.code == 0 and "7 shards are written, the others were there." in answer.text, answer.text
    shards, local = resolved(tmp_path, *window, source), resolved(tmp_path, *window, data=str(root))
    assert shards.hash == local.hash and shards.data == local.data and "source" not in shards.data["options"]
    assert shards.local["data"] == {"source": f"{tmp_path}/shards"} and "data" not in local.local
    plain = resolved(tmp_path, data=str(root))
    assert plain.hash != local.hash and plain.data["fingerprint"] != local.data["fingerprint"]
    answer = mtlbench(tmp_path, "data", "taskonomy", *window, source, "--verify", "data.options.size=28")
    assert answer.code == 0 and f"source {tmp_path}/shards\n  shards of 8 samples at" in answer.text, answer.text


def test_shards_pass_the_contract(url: str) -> None:
    findings = check_data_module("data_modules.taskonomy:Taskonomy", None, source=url, tasks=TASKS, **OPTIONS)
    assert [found.detail for found in findings if not found.ok] == []


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (
            {"shard": 8},
            r"data.options.shard: the suite has 8, the shards of .* 4. Change data.options in the suite, or",
        ),
        ({"subset": "full"}, r"variant: the suite has \{'subset': 'full'\}"),
        ({"size": 32}, r"decoded: the suite has \['stretch', \[37, 37\]"),
        (
            {"tasks": {"normal": TASKS["normal"], "reshading": Taskonomy.TASKS["reshading"]}},
            "^reshading: not in the sh",
        ),
        ({"source": "memory://nothing"}, r"memory://nothing/index.json: FileNotFoundError.*Check address"),
    ],
)
def test_shards_of_other_data_are_refused(url: str, options: dict[str, Any], fault: str) -> None:
    data = streamed(**{"url": url, **options}) if "source" not in options else streamed("memory://nothing")
    (line,) = data.missing()
    assert re.search(fault, line), line


def test_options_that_have_no_effect_alone_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SuiteError, match="within a window of shards.*Set data.options.window, for example to 16"):
        Taskonomy(None, source=url)
    with pytest.raises(SuiteError, match="the size of a shard matters within a window. Found shard: 8"):
        Taskonomy(None, shard=8)
    for option, value in {"window": 0, "shard": True, "space": 0.0, "source": 3}.items():
        with pytest.raises(SuiteError, match=f"Taskonomy's {option} must be .* Found {value!r}"):
            Taskonomy(None, **{"window": 2, option: value})
    monkeypatch.setenv("MTLBENCH_CACHE", "off")
    assert "MTLBENCH_CACHE is off" in streamed(url).missing()[0]


def test_rules_on_labels_and_unions_are_refused(root: Path, url: str, tmp_path: Path) -> None:
    data = started(streamed(url))
    data.labels = {"normal": {"share": 0.5}}
    with pytest.raises(SuiteError, match=r"window of 2 shards, and the study changes labels of normal. Leave data.opt"):
        data.train_dataloader()
    scenario = "scenario={kind: low_resource, task: normal, fractions: [0.5]}"
    with pytest.raises(SuiteError, match="the study changes labels of normal"):
        resolved(tmp_path, "data.options.window=2", scenario, data=str(root))
    stream = {"module": "data_modules.taskonomy:Taskonomy", "root": str(root), "options": {"window": 2}}
    from data_modules.union import Union

    with pytest.raises(SuiteError, match=r"Stream a has a window of 2 shards. Leave window and source out"):
        Union(None, streams={"a": stream})


def test_faults_of_shards_stop_the_run_with_the_file(root: Path, tmp_path: Path) -> None:
    files(root).shard(str(tmp_path / "shards"))
    image = tmp_path / "shards/train/000003/image.npy"
    content = image.read_bytes()
    for broken, fact in (
        (content[:-5], "bytes came, whose SHA-256"),
        (content[:-1] + b"?", "SHA-256"),
        (None, "NotFound"),
    ):
        image.write_bytes(broken) if broken else image.unlink()
        with pytest.raises(DataError, match=rf"train/000003/image.npy: .*{fact}"):
            streamed(str(tmp_path / "shards")).samples("train")[3]
    about = tmp_path / "shards/val/000000/about.json"
    about.write_text(about.read_text().replace("corozal", "corozel"))
    with pytest.raises(DataError, match="val/000000/about.json: .*SHA-256"):
        streamed(str(tmp_path / "shards")).samples("val")[0]
    index = tmp_path / "shards/index.json"
    for text in (
        "[]",
        "{",
        index.read_text().replace('"format": 1', '"format": 9'),
        index.read_text().replace("|u1", "|O"),
    ):
        index.write_text(text)
        assert "must be an index of shards" in streamed(str(tmp_path / "shards")).missing()[0]


def test_writing_goes_on_where_it_stopped_and_replaces_nothing(
    root: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, write = tmp_path / "shards", remote.Remote.write

    def killed(self: Any, name: str, content: bytes) -> None:
        if name == "train/000002/label-normal.npy":
            raise KeyboardInterrupt
        write(self, name, content)

    monkeypatch.setattr(remote.Remote, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        files(root).shard(str(place))
    monkeypatch.setattr(remote.Remote, "write", write)
    assert "index.json: FileNotFoundError" in streamed(str(place)).missing()[0], "half a set is none"
    assert files(root).shard(str(place)) == 7 + 3 + 1 - 2
    paths = [path.relative_to(place) for path in sorted(place.rglob("*.*"))]
    whole = root / "shards"
    assert [path.relative_to(whole) for path in sorted(whole.rglob("*.*"))] == paths
    assert all((whole / path).read_bytes() == (place / path).read_bytes() for path in paths)
    assert files(root).shard(str(place)) == 0
    with pytest.raises(DataError, match="Shards never replace others.*Name another URL"):
        files(root, size=32).shard(str(place))
    assert json.loads((place / "index.json").read_text())["splits"]["val"]["samples"] == 9

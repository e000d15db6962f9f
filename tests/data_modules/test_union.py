"""Unions of data sets: training on two ranks, resuming, tasks without a stream in a step, and exact evaluation."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_modules.union import Union
from mtlbench import registry
from mtlbench.data.streams import StreamBatches
from mtlbench.errors import DataError, MtlbenchError
from mtlbench.method import MTLMethod
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder
from mtlbench.tasks.inputs import VECTORS
from mtlbench.testing import TOLERANCE, ToyData, check_data_module, difference, toy_spec, trained
from mtlbench.testing.toy import ToyVectors

TOY, OTHER = "mtlbench.testing.toy:ToyData", "mtlbench.testing.toy:ToyVectors"
PLAIN = {"ragged": False}
STREAMS = {
    "large": {"module": TOY, "tasks": ["kind", "far"], "options": {**PLAIN, "size": 200}},
    "small": {"module": TOY, "tasks": ["shape", "mean"], "options": {**PLAIN, "size": 24}},
}


def vectors() -> dict[str, Any]:
    return {name: {**given, "module": OTHER} for name, given in STREAMS.items()}


def spec_of(target: str, options: dict[str, Any], inputs: str = VECTORS, **changes: Any) -> RunSpec:
    streams = vectors() if inputs == VECTORS else STREAMS
    data = {"module": "data_modules.union:Union", "options": {"streams": streams, **options}}
    return replace(toy_spec(target, inputs=inputs, ragged=False, **changes), data=data)


BALANCERS = [name for name in registry.shipped() if not issubclass(registry.find(name), MTLMethod)]
MIXED: dict[str, Any] = {"mixing": "uniform"}
SHARP = {"rule": "score", "uniform": 0.0, "power": 50.0, "smooth": 0.0}
"""Draws almost only the stream with the lower score."""
STEEP = {"rule": "gradient", "size": 3.0, "noise": 0.0, "uniform": 0.0}


@pytest.mark.parametrize("name", ["uniform", "pcgrad", "famo", "mgda_ub", "it_mtl", "ple", "task_moe"])
def test_two_ranks_and_a_resumed_run_train_as_one_process(name: str, pool: Any, tmp_path: Path) -> None:
    """Each step has one of the two streams, so that the tasks of the other one are absent."""
    spec = spec_of(name, MIXED, steps=12)
    one = trained(spec, str(tmp_path / "one"))
    assert trained(spec, str(tmp_path / "broken"), stop_at=5) is None
    assert difference(one, trained(spec, str(tmp_path / "broken"))) == 0
    two = pool.call(trained, spec, str(tmp_path / "two"), world=2)[0]
    assert difference(one, two) <= TOLERANCE


def test_fixed_shares_of_images_with_accumulation(pool: Any, tmp_path: Path) -> None:
    streams = {name: {**given, "batch": size} for (name, given), size in zip(STREAMS.items(), (12, 4), strict=True)}
    spec = spec_of("pcgrad", {"streams": streams}, "images", steps=4, batch_size=16, accumulate=2)
    spec = replace(spec, data={**spec.data, "options": {"streams": streams}})
    one = trained(spec, str(tmp_path / "one"))
    assert difference(one, pool.call(trained, spec, str(tmp_path / "two"), world=2)[0]) <= TOLERANCE


@pytest.mark.parametrize("rule", [SHARP, STEEP], ids=["score", "gradient"])
def test_mixing_by_evaluations_resumes_and_is_equal_on_ranks(rule: dict[str, Any], pool: Any, tmp_path: Path) -> None:
    spec = spec_of("uniform", {"mixing": rule}, steps=14, evaluate_every=3)
    one = trained(spec, str(tmp_path / "one"))
    assert trained(spec, str(tmp_path / "broken"), stop_at=8) is None
    assert difference(one, trained(spec, str(tmp_path / "broken"))) == 0
    assert difference(one, pool.call(trained, spec, str(tmp_path / "two"), world=2)[0]) <= TOLERANCE
    rows = (RunFolder(tmp_path / "one", spec.run_id).path / "metrics.jsonl").read_text().splitlines()
    shares = [json.loads(row)["mixing/large"] for row in rows if "mixing/large" in row]
    assert shares[:3] == [0.5] * 3 and shares[-1] not in (0.5, shares[3]), "the record shows what follows the rule"


@pytest.mark.parametrize("name", BALANCERS)
def test_every_balancer_on_streams_of_very_different_sizes(name: str, pool: Any, tmp_path: Path) -> None:
    spec = spec_of(name, {"mixing": {"rule": "temperature"}}, steps=6, batch_size=12)
    one = trained(spec, str(tmp_path / "one"))
    assert difference(one, pool.call(trained, spec, str(tmp_path / "two"), world=2)[0]) <= TOLERANCE


def test_evaluation_counts_every_sample_once() -> None:
    data = Union(streams=STREAMS, batch_size=4)
    for loader, split in ((data.eval_dataloader("val"), "val"), (data.fitting_dataloader(), "train")):
        seen: Counter[tuple[str, str]] = Counter()
        for batch in loader:
            ((name, stream),) = batch["streams"].items()
            assert set(stream["targets"]) == set(STREAMS[name]["tasks"])
            seen.update((name, one) for one in stream["id"])
        assert set(seen.values()) == {1} and len(seen) == data.sample_count(split) == len(data.samples(split))


def test_each_sample_has_labels_of_its_own_stream() -> None:
    joined = Union(streams=STREAMS).samples("train")
    assert len(joined) == 224 and set(joined[0]["targets"]) == {"kind", "far"}
    assert set(joined[200]["targets"]) == {"shape", "mean"}


def test_one_task_alone_uses_its_stream_only(tmp_path: Path) -> None:
    spec = spec_of("uniform", MIXED, steps=3)
    alone = spec.with_tasks("mean")
    assert trained(alone, str(tmp_path)) is not None
    data = Union(streams=vectors(), tasks={"mean": ToyVectors.TASKS["mean"]})
    assert list(data.streams) == ["small"]


def test_what_identifies_a_union() -> None:
    assert Union(streams=STREAMS).fingerprint() == Union(streams=STREAMS).fingerprint()
    assert Union.tasks_of({"streams": STREAMS}).keys() == ToyData.TASKS.keys()
    assert Union.inputs_kind({"streams": vectors()}) == VECTORS


def test_a_step_without_a_stream_leaves_its_head_alone() -> None:
    data = Union(streams=vectors(), mixing="uniform", batch_size=8, steps=6)
    for batch in data.train_dataloader():
        ((name, stream),) = batch["streams"].items()
        others = {"large", "small"} - {name}
        assert batch["idle"] == stream["idle"] == STREAMS[others.pop()]["tasks"]
        assert len(stream["id"]) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"streams": {}}, "maps each stream to its data"),
        ({"streams": {"a": {"tasks": ["kind"]}}}, "a needs the module"),
        ({"streams": {"a": {"module": TOY, "bacth": 3}}}, "'bacth'.*batch"),
        ({"streams": {"a": {"module": TOY, "tasks": ["kimd"]}}}, "Stream a: .*'kimd'.*kind"),
        ({"streams": {"a": {"module": TOY}, "b": {"module": TOY, "tasks": ["far"]}}}, "far is one of a and of b"),
        ({"streams": {"a": {"module": TOY, "every": 0}}}, "every is a whole number from 1"),
        ({"streams": {"a": {"module": "json:dumps"}}}, "subclass of MTLDataModule"),
        ({"stop": "shortes"}, "'shortes'.*shortest"),
        ({"mixing": {"rule": "score"}, "workers": 1}, "trainer.workers to 0"),
    ],
)
def test_unions_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MtlbenchError, match=message):
        Union(**{"streams": STREAMS, **changes})


def test_shares_that_do_not_fit() -> None:
    streams = {name: {**given, "batch": 5} for name, given in STREAMS.items()}
    with pytest.raises(MtlbenchError, match="add up to trainer.batch_size, 8. Found.*'large': 5"):
        _ = Union(streams=streams, batch_size=8).schedule
    with pytest.raises(MtlbenchError, match="slots divides trainer.batch_size 8. Found 3"):
        _ = Union(streams=STREAMS, batch_size=8, slots=3, mixing="uniform").schedule
    both = {"a": {"module": TOY, "tasks": ["kind"]}, "b": {"module": OTHER, "tasks": ["far"]}}
    with pytest.raises(MtlbenchError, match="one kind of inputs. Found a images, b vectors"):
        Union.inputs_kind({"streams": both})


def test_a_run_on_one_task_keeps_the_share_of_its_stream() -> None:
    streams = {"large": {**STREAMS["large"], "batch": 12}, "small": {**STREAMS["small"], "batch": 4, "every": 3}}
    both: Any = Union(streams=streams, batch_size=16).schedule
    assert (both.batch, both.every) == ({"large": 12, "small": 4}, {"large": 1, "small": 3})
    alone: Any = Union(streams=streams, batch_size=16, tasks={"mean": ToyData.TASKS["mean"]}).schedule
    assert (alone.batch, alone.every) == ({"small": 4}, {"small": 1})


def test_a_run_that_would_see_the_shortest_stream_again() -> None:
    """24 samples of the small stream, four a step, last for six steps."""
    assert Union(streams=STREAMS, batch_size=8, steps=6, stop="shortest").missing() == []
    (line,) = Union(streams=STREAMS, batch_size=8, steps=7, stop="shortest").missing()
    assert "small, with 24 training samples, is used up after 6 steps, and trainer.steps is 7" in line
    assert Union(streams=STREAMS, batch_size=8, steps=7).missing() == []


def test_an_empty_stream_is_no_data() -> None:
    streams = {**STREAMS, "small": {**STREAMS["small"], "options": {"size": 0}}}
    data = Union(streams=streams, batch_size=8)
    assert data.sample_count("train") == 0
    with pytest.raises(MtlbenchError, match="small has 0 training samples"):
        StreamBatches(data.schedule, {"large": 200, "small": 0}, 1, 0)


def test_forward_passes_of_idle_tasks_are_not_made(tmp_path: Path) -> None:
    """The cost of a step is that of its stream."""
    both, one = (trained_flops(spec_of("uniform", options, steps=2), tmp_path / key) for key, options in COSTS.items())
    assert one < both


COSTS: dict[str, dict[str, Any]] = {"both": {}, "one": {"mixing": {"rule": "temperature", "temperature": 1.0}}}


def trained_flops(spec: RunSpec, folder: Path) -> int:
    torch.manual_seed(0)
    assert trained(spec, str(folder)) is not None
    result = RunFolder(folder, spec.run_id).result()
    assert result is not None
    return result["cost"]["training_flops"]


def test_the_contract_of_data_modules() -> None:
    assert all(found.ok for found in check_data_module("data_modules.union:Union", streams=STREAMS, **MIXED))


def test_the_sample_of_a_suite_holds_the_data_of_all_its_streams(tmp_path: Path) -> None:
    streams = {
        "tweets": {"module": "data_modules.text_sets:Sentiment", "options": {"domain": "tweets", "length": 16}},
        "cola": {"module": "data_modules.glue:Glue", "options": {"config": "cola", "length": 16}},
    }
    root = Union.miniature_of(tmp_path, {"streams": streams})
    data = Union(str(root), streams=streams)
    assert not data.missing() and set(data.tasks) == {"tweets_valence", "tweets_sign", "tweets_spread", "cola"}
    with pytest.raises(DataError, match="Union has none to write: leave SAMPLE out"):
        Union.miniature_of(tmp_path, {"streams": {"digits": {"module": "data_modules.digits:Digits"}}})

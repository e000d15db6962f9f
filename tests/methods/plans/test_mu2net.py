"""μ2Net: parents, mutations and scores by hand; earlier tasks keep every bit; the plan and its record."""

from __future__ import annotations

import collections
import functools
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlbench import registry
from mtlbench.errors import MethodError
from mtlbench.method.evolution import RANGES, Genes, accounted, chosen_parent, neighbour, penalised
from mtlbench.method.evolution import Path as Line
from mtlbench.networks import paths
from mtlbench.networks.paths import PathNetwork
from mtlbench.report.figures.evolution import GROWTH, evolution_figures
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder
from mtlbench.tasks import Depth
from mtlbench.testing import toy_spec
from mtlbench.training.load import load_run
from mtlbench.training.run import train
from tests.support.grouping_plans import drive

CNN = {"encoder": "test_resnet", "image_size": [16, 24], "decoder_channels": 8}
SIZES = {"embedding": 40, "block": 50, "neck": 5, "head": 5}


@functools.cache
def _names(model: str) -> tuple[str, ...]:
    return tuple(paths.layout(json.loads(model))[0])


def names_of(model: Mapping[str, Any]) -> list[str]:
    """Returns the components of a path."""
    return list(_names(json.dumps(model)))


def line_of(*tasks: str, seed: int = 0, **arguments: Any) -> RunSpec:
    spec = toy_spec("mu2net", tasks=list(tasks or ("kind", "far")), seed=seed)
    return spec.with_method(registry.record("mu2net", **{"children": 3, **arguments}))


def path(owner: str, value: float = 0.0, **owners: str) -> Line:
    return Line(None, Genes((), (), {}), {name: owners.get(name, owner) for name in SIZES}, SIZES, value)


def invented(run: RunSpec) -> dict[str, Any]:
    """Returns a result whose score depends on the run alone."""
    sizes = dict.fromkeys(names_of(run.model), 10) | {f"adapter{s}": 2 for s in run.method["arguments"]["adapters"]}
    (task,) = run.tasks
    scores = {task: {run.tasks[task]["protocols"][0]["id"]: int(run.hash[:4], 16) / 2**16}}
    return {"validation": scores, "scores": {}, "summary": {"components": {**sizes, "head": 1}}}


# ---- rules by hand --------------------------------------------------------------------------------------------------


def test_a_score_falls_with_the_parameters() -> None:
    assert penalised(0.8, 0.5, 0.95) == pytest.approx(0.7797, abs=5e-5)
    assert penalised(-0.8, 0.5, 0.95) < -0.8 and penalised(0.8, 3.0, 1.0) == 0.8


def test_a_shared_component_is_divided_among_its_paths() -> None:
    own = path("a", embedding="root", block="root")
    assert accounted(own, []) == 100
    assert accounted(own, [path("root"), path("b", embedding="root")]) == pytest.approx(40 / 3 + 50 / 2 + 5 + 5)


def test_the_better_parent_is_offered_first_and_less_often_after_each_child() -> None:
    rng, first, second, seed = random.Random(0), path("a", 2), path("b", 1), path("c")
    counts = {id(first): 1, id(second): 2}
    found = collections.Counter(id(chosen_parent(rng, [first, second], [seed], counts)) for _ in range(4000))
    assert [found[id(p)] / 4000 for p in (first, second, seed)] == pytest.approx([0.5, 0.125, 0.375], abs=0.03)
    assert chosen_parent(rng, [first, second], [seed], {}) is first


def test_paths_of_other_tasks_are_offered_in_turn() -> None:
    rng, seeds = random.Random(0), [path("a"), path("b"), path("c")]
    turns = [chosen_parent(rng, [], seeds, {}).owners["neck"] for _ in range(4)]
    assert turns == ["a", "b", "c", "a"]
    busy = {id(seed): 60 for seed in seeds}
    assert len({chosen_parent(rng, [], seeds, busy).owners["neck"] for _ in range(60)}) == 3


def test_hyper_parameters_move_to_a_neighbour() -> None:
    rng, rates = random.Random(0), RANGES["lr"]
    assert {neighbour(rng, rates, 1.0) for _ in range(50)} == {0.5, 2.0}
    assert {neighbour(rng, rates, rates[0]) for _ in range(20)} == {rates[1]}


# ---- the plan -------------------------------------------------------------------------------------------------------


def test_the_same_seed_has_the_same_lineage_and_another_one_has_not() -> None:
    (stages, ending), (_, again), (_, other) = (drive(line_of(seed=s), invented) for s in (0, 0, 1))
    assert ending == again and ending.record["lineage"] != other.record["lineage"]
    assert [len(runs) for runs in stages] == [3, 3, 3, 3]
    for entry in ending.record["lineage"]:
        assert entry["kept"] == (entry["run"] in ending.serving.values())


def test_a_further_task_changes_no_run_of_an_earlier_one() -> None:
    (few, before), (many, after) = (
        drive(line_of("kind", "far"), invented),
        drive(line_of("kind", "far", "mean"), invented),
    )
    assert many[:4] == few and before.serving.items() <= after.serving.items()
    assert [e["parameters"] for e in after.record["growth"][:2]] == [e["parameters"] for e in before.record["growth"]]
    earlier = {run.run_id for runs in few for run in runs}
    assert {run.sources["parent"]["run"] for run in many[4] if run.sources} <= earlier


def test_what_is_stored_counts_shared_components_once() -> None:
    spec = line_of("kind", "far", "mean", generations=1, mutation=0.0, children=1)
    spec = replace(spec, model={**spec.model, "weights": "sha256:0"})  # Pretrained: nothing is copied.
    stages, ending = drive(spec, invented)
    names = names_of(spec.model)
    assert all(run.method["arguments"]["trained"] == [] for runs in stages for run in runs)
    assert [e["parameters"] for e in ending.record["growth"]] == [10 * len(names) + n for n in (1, 2, 3)]
    assert ending.record["whole"] == 10 * len(names) + 1


def test_random_initial_weights_are_copied_as_a_whole_and_later_ones_are_not() -> None:
    spec = line_of(mutation=0.0, generations=2)
    spec = replace(spec, model={**spec.model, "weights": "random"})
    stages, ending = drive(spec, invented)
    # Without mutation, equal children are left out.
    assert [len(runs) for runs in stages] == [1, 1, 1, 1]
    assert stages[0][0].method["arguments"]["trained"] == names_of(spec.model)
    assert not stages[0][0].sources and all(runs[0].method["arguments"]["trained"] == [] for runs in stages[1:])
    assert [runs[0].sources["parent"]["run"] for runs in stages[1:]] == [
        stages[0][0].run_id, ending.serving["kind"], stages[2][0].run_id
    ]  # fmt: skip


def test_a_child_is_chosen_by_score_and_parameters() -> None:
    """Of equal scores, the path that trains less is kept; of errors, the smaller one."""

    def invent(run: RunSpec) -> dict[str, Any]:
        known = {task: {run.tasks[task]["protocols"][0]["id"]: 0.5} for task in run.tasks}
        return {**invented(run), "validation": known}

    _, ending = drive(line_of("kind", "far", children=6, generations=1, mutation=0.4, base=0.5), invent)
    for task in ("kind", "far"):
        scores = {e["run"]: e["score"] for e in ending.record["lineage"] if e["task"] == task}
        assert ending.serving[task] == max(scores, key=lambda run: scores[run]) and len(set(scores.values())) > 1


def test_a_child_has_its_hyper_parameters_and_its_share_of_steps() -> None:
    stages, ending = drive(line_of(children=6, mutation=0.4, share=0.5), invented)
    runs = {run.run_id: run for stage in stages for run in stage}
    moved = set()
    for entry in ending.record["lineage"]:
        run, parent = (
            runs[entry["run"]],
            next((e for e in ending.record["lineage"] if e["run"] == entry["parent"]), None),
        )
        assert run.trainer["steps"] == 10 and run.optimiser["lr"] == 0.01 * entry["hyper"]["lr"]
        before = parent["hyper"] if parent else {"lr": 1.0, "mutation": 0.4}
        for key in ("lr", "mutation"):
            at, was = (RANGES[key].index(values[key]) for values in (entry["hyper"], before))
            assert abs(at - was) <= 1
            moved.add((key, at - was))
    assert {("lr", 0), ("lr", 1)} <= moved or {("lr", 0), ("lr", -1)} <= moved


@pytest.mark.parametrize(("arguments", "message"), [
    ({"children": 0}, "children must be a whole number of at least 1. Found 0"),
    ({"generations": 0}, "generations must be a whole number of at least 1"), ({"width": 0}, "width"),
    ({"order": ["kind", "fra"]}, "order: Unknown task 'fra'.*far"), ({"order": ["kind"]}, "names every task once"),
    ({"order": ["kind", "kind", "far"]}, "names every task once"),
    ({"share": 0.0}, r"share and base must be in \(0, 1\]"),
    ({"children": -3}, "children must be .* Found -3"), ({"mutation": float("nan")}, "mutation in .* nan"),
    ({"mutation": 1.5}, "mutation in"), ({"base": 0.0}, "share and base"),
])  # fmt: skip
def test_mistakes_are_told_before_anything_is_trained(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        drive(line_of(**arguments), invented)


def test_a_balancer_is_refused() -> None:
    spec = line_of()
    spec = replace(spec, method={**spec.method, "balancer": {"name": "pcgrad", "path": "pcgrad", "arguments": {}}})
    with pytest.raises(MethodError, match="nothing to balance. Drop pcgrad"):
        drive(spec, invented)


@pytest.mark.parametrize("wrong", [{"trained": ["blck"]}, {"adapters": [9]}])
def test_unknown_components_and_stages_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match="Unknown component 'blck'|stages 0 to 3. Found 9"):
        PathNetwork({"far": Depth("far")}, **wrong, **CNN)


# ---- the network ----------------------------------------------------------------------------------------------------


def test_components_cover_all_parameters_and_new_adapters_change_nothing() -> None:
    torch.manual_seed(0)
    plain = PathNetwork({"far": Depth("far")}, **CNN).eval()
    adapted = PathNetwork({"far": Depth("far")}, adapters=(0, 2), **CNN).eval()
    assert sum(plain.sizes.values()) == sum(p.numel() for p in plain.parameters())
    assert set(adapted.sizes) - set(plain.sizes) == {"adapter0", "adapter2"}
    adapted.take(plain)
    image = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    assert torch.equal(plain(image, ["far"]).predictions["far"], adapted(image, ["far"]).predictions["far"])
    with pytest.raises(MethodError, match="all components of its parent"):
        plain.take(adapted)


def trained_run(spec: RunSpec, root: Path) -> Any:
    folder = RunFolder(root, spec.run_id)
    assert folder.claim(spec) and train(spec, folder)
    return load_run(root / spec.run_id)


def test_a_child_trains_its_components_and_shares_the_others_bit_for_bit(tmp_path: Path) -> None:
    spec = replace(toy_spec("mu2net", steps=2, precision="32-true"), model=CNN)
    blocks = [name for name in names_of(CNN) if name not in ("embedding", "neck")]
    first = replace(spec.with_tasks("far"), method=registry.record("mu2net"))
    genes = {"trained": [blocks[1], "adapter1"], "adapters": [1]}
    second = replace(spec.with_tasks("kind"), method=registry.record("mu2net", **genes)).with_sources(parent=first)
    parent, child = trained_run(first, tmp_path), trained_run(second, tmp_path)
    one, two = parent.method.network, child.method.network
    changed = {
        two.component(n) for n, v in two.state_dict().items() if n in (o := one.state_dict()) and not o[n].equal(v)
    }
    assert changed == {blocks[1]}  # Neither weights nor statistics of BatchNorm of any other component.
    summary = json.loads((tmp_path / second.run_id / "summary.json").read_text())
    assert set(summary["shared"]) == {"embedding", "neck", *blocks} - {blocks[1]}
    assert child.result["cost"]["parameters"] == sum(two.sizes[n] for n in (blocks[1], "adapter1", "head"))
    # The first task's path, through the components that the second one stores, predicts what it did.
    image = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    before = parent.method(image, ["far"])["far"]
    with torch.no_grad():
        for name, value in one.state_dict().items():
            if two.component(name) in summary["shared"]:
                value.copy_(two.state_dict()[name])
    assert torch.equal(parent.method(image, ["far"])["far"], before)


# ---- the report -----------------------------------------------------------------------------------------------------


def test_growth_and_lineage_are_drawn() -> None:
    _, ending = drive(line_of(), invented)
    row = {"label": "mu2net", "seed": 0, "record": ending.record}
    figures = evolution_figures({"rows": [row, {**row, "label": "other", "record": None}]})
    grown, drawn = figures[GROWTH], figures["Lineage of mu2net, seed 0"]
    assert list(grown.data[0].y) == [e["parameters"] / 1e6 for e in ending.record["growth"]]
    assert list(grown.data[1].y)[1] == 2 * ending.record["whole"] / 1e6
    edges, *tasks = drawn.data
    assert [t.name for t in tasks] == ["kind", "far"] and sum(len(t.x) for t in tasks) == 12
    assert [list(t.marker.symbol).count("star") for t in tasks] == [1, 1]
    assert drawn.layout.xaxis.ticktext == ("initial", "1", "2", "1", "2"), "short enough to stand above the legend"
    assert len(edges.x) == 3 * 12 and evolution_figures({"rows": []}) == {}


def test_errors_enter_with_the_opposite_sign() -> None:
    """``far`` is an error, for which lower is better."""
    _, ending = drive(line_of("kind", "far"), invented)
    signs = {e["task"]: e["value"] > 0 for e in ending.record["lineage"]}
    assert signs == {"kind": True, "far": False}

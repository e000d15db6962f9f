"""Computation sharing: its plan, the three phases of a run, and the curve that is measured at the end."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mtlbench
from mtlbench import registry
from mtlbench.data.contract import streams
from mtlbench.errors import MethodError, SuiteError
from mtlbench.method import MethodSpec
from mtlbench.methods.plans.computation_sharing import ComputationSharing
from mtlbench.networks.sharing.gates import START
from mtlbench.networks.sharing.network import activation_distance
from mtlbench.runs.store import RunFolder
from mtlbench.testing.toy import ToyData, sourced, toy_spec, trained
from mtlbench.training.load import load_run

THRESHOLDS = [0.0, 0.02, 0.1, math.inf]
ARGUMENTS = {"threshold": 0.02, "thresholds": THRESHOLDS, "sparsity": 3.0, "gate_lr": 1.6, "closeness": 5.0}


class Watched(ComputationSharing):
    """Notes Δ and gates after every step."""

    seen: list = []

    def optimizer_step(self, *args, **kwargs):
        """Steps and notes."""
        super().optimizer_step(*args, **kwargs)
        state = self.network.deltas.state_dict()
        self.seen.append({name: value.clone() for name, value in state.items()})


class Clipped(ComputationSharing):
    """Notes the norm of the gradients of Δ and gates before and after clipping."""

    norms: list = []

    def configure_gradient_clipping(self, *args, **kwargs):
        """Looks, clips, looks."""
        before = self.norm()
        super().configure_gradient_clipping(*args, **kwargs)
        self.norms.append((before, self.norm()))

    def norm(self):
        deltas = self.network.deltas
        found = [p.grad.norm() for p in (*deltas.values(), *deltas.gates()) if p.grad is not None]
        return float(torch.stack(found).norm())


class ThreeSplits(ToyData):
    """Toy data with a split to choose by and one to report."""

    SPLITS = ("train", "val", "test")


def small(target="computation_sharing", steps=8, tasks=("far",), **changes):
    arguments = {**ARGUMENTS, **changes.pop("arguments", {})}
    spec = toy_spec(target, steps=steps, tasks=list(tasks), arguments=arguments, **changes)
    method = {**spec.method, "arguments": registry.defaults(registry.find(target), arguments)}
    return replace(
        spec, method=method, data={**spec.data, "module": "tests.methods.plans.test_computation_sharing:ThreeSplits"}
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and specification of a finished run, whose every step was watched."""
    folder = str(tmp_path_factory.mktemp("finished"))
    Watched.seen.clear()
    spec = sourced(small("tests.methods.plans.test_computation_sharing:Watched"), folder)
    RunFolder(Path(folder), spec.run_id).claim(spec)
    trained(spec, folder)
    return Path(folder), spec


def built(**arguments):
    torch.manual_seed(0)
    spec = toy_spec("computation_sharing")
    method = ComputationSharing(MethodSpec({"far": ToyData.TASKS["far"]}, spec.model, steps=8), **arguments)
    method.configure_model()
    return method


# ---- the plan -------------------------------------------------------------------------------------------------------


def stages(spec):
    plan, found = ComputationSharing.plan(spec), []
    runs = next(plan)
    while True:
        found.append(runs)
        try:
            runs = plan.send([{} for _ in runs])
        except StopIteration as end:
            return found, end.value


def test_the_plan_is_the_base_then_every_other_task():
    spec = small(tasks=("kind", "shape", "far"))
    (first, second), serving = stages(spec)
    (base,) = first
    assert list(base.tasks) == ["kind"] and [list(run.tasks) for run in second] == [["shape"], ["far"]]
    assert all(run.sources == {"base": {"run": base.run_id, "hash": base.hash}} for run in second)
    assert serving == {"kind": base.run_id, "shape": second[0].run_id, "far": second[1].run_id}


def test_the_base_is_the_very_run_of_single_task():
    spec = small(tasks=("kind", "far"), arguments={"base": "far"})
    single = spec.with_method(registry.record("single_task"))
    runs = {next(iter(run.tasks)): run.run_id for run in next(registry.find("single_task").plan(single))}
    assert [run.run_id for run in stages(spec)[0][0]] == [runs["far"]]


def test_a_lone_task_is_its_own_base():
    found, serving = stages(small(tasks=("far",)))
    assert len(found) == 1 and serving == {"far": found[0][0].run_id}


def test_which_task_is_the_base():
    assert ComputationSharing.roles(["depth", "semseg"]) == {"base": ("semseg",)}
    assert ComputationSharing.roles(["depth", "normals"]) == {"base": ("depth",)}
    with pytest.raises(MethodError, match="base task 'fare'.*did you mean 'far'|Did you mean 'far'"):
        next(ComputationSharing.plan(small(tasks=("kind", "far"), arguments={"base": "fare"})))


# ---- a run ----------------------------------------------------------------------------------------------------------


def split(state):
    """Returns the gates of a state, and its values."""
    gates = {name: v for name, v in state.items() if not name.endswith(".value")}
    return gates, {name: v for name, v in state.items() if name.endswith(".value")}


def test_gates_move_in_the_first_phase_only(finished):
    seen = [split(state)[0] for state in Watched.seen]
    assert len(seen) == 8
    assert all(any(not torch.equal(a[n], b[n]) for n in a) for a, b in zip(seen[:3], seen[1:4], strict=True))
    # Settled before step 4: momentum does not move what is decided.
    for later in seen[4:]:
        assert all(torch.equal(seen[4][name], value) for name, value in later.items())
    logits = torch.cat([v.flatten() for name, v in seen[4].items() if name.endswith(".logit")])
    assert set(logits.tolist()) == {START, -START} and 0.005 < (logits > 0).double().mean() < 0.995
    before = torch.cat([v.flatten() for name, v in seen[3].items() if name.endswith(".logit")])
    groups = {name: float(v) for name, v in seen[3].items() if name.endswith(".group")}
    opened = torch.cat(
        [
            ((v > 0) & (groups[name.replace(".logit", ".group")] > 0)).flatten()
            for name, v in seen[3].items()
            if name.endswith(".logit")
        ]
    )
    assert len(before) == len(logits) and torch.equal(opened, logits > 0)


def test_the_changed_entries_stay_the_same_after_pruning(finished):
    folder, spec = finished
    net = load_run(folder / spec.run_id, allow=["tests"]).method.double().network
    weights, first, last = net.weights(), Watched.seen[4], Watched.seen[-1]
    values = {name: name.removesuffix(".value") for name in split(first)[1]}
    assert any(not torch.equal(first[name], last[name]) for name in values), "what is kept is trained further"
    inside = outside = 0
    for name, delta in net.deltas.named():
        (key,) = [own for own in values.values() if net.deltas.get_submodule(own) is delta]
        kept = first[f"{key}.logit"] > 0  # after the step in which pruning ended
        differs = weights[name] != net.encoder.get_parameter(name)
        inside, outside = inside + int(differs[kept].sum()), outside + int(differs[~kept].sum())
    assert outside == 0 < inside


def test_a_finished_run_needs_no_base(finished, tmp_path):
    folder, spec = finished
    other = tmp_path / spec.run_id
    shutil.copytree(folder / spec.run_id, other)
    run, base = load_run(other, allow=["tests"]), load_run(folder / spec.sources["base"]["run"], allow=["tests"])
    run.method.double(), base.method.double()
    for name, value in base.method.network.encoder.state_dict().items():
        assert torch.equal(run.method.network.encoder.encoder.state_dict()[name], value), name
    assert run.method(torch.zeros(1, 3, 16, 24, dtype=torch.uint8))["far"].shape == (1, 1, 16, 24)


def recorded(folder, spec):
    path = Path(folder) / spec.run_id
    return json.loads((path / "summary.json").read_text())["sharing"], json.loads((path / "result.json").read_text())


def test_the_curve(finished):
    sharing, result = recorded(*finished)
    for split_, scores in (("scores", result["scores"]), ("validation", result["validation"])):
        points = sharing["curves"][split_]
        assert [point["threshold"] for point in points] == THRESHOLDS
        assert points[1]["scores"] == scores and points[0]["scores"] != points[3]["scores"]
        totals = [sum(point["changed"].values()) for point in points]
        assert totals[0] > totals[1] > totals[2] > totals[3] == 0
        assert points[0]["changed"]["block1.act"] > 0.9 and points[0]["changed"]["pixels"] == 0
        flops = [point["flops"] for point in points]
        assert flops == sorted(flops, reverse=True) and flops[0] > flops[3]
    # Without changed inputs what is left is N nnz(ΔW), attention and the decoder.
    assert points[3]["flops"] > sharing["flops"]["attention"] + sharing["flops"]["decoder"]
    assert sharing["threshold"] == 0.02 and 0 < sharing["storage"]["kept"] < sharing["storage"]["entries"]


@pytest.mark.parametrize(("curve", "split_"), [("scores", "test"), ("validation", "val")])
def test_changed_shares_and_flops_are_those_of_the_split(finished, curve, split_):
    folder, spec = finished
    run = load_run(folder / spec.run_id, allow=["tests"])
    net, image = run.method.double().network, torch.cat([b["image"] for b in run.data.eval_dataloader(split_)])
    with torch.no_grad():
        base = net.base(image)
        trace = net.trace(image, net.weights(), base, 0.02)
    point = recorded(folder, spec)[0]["curves"][curve][1]
    changed = {p: (trace.activations[p] != base.activations[p]).double().mean() for p in net.encoder.places}
    assert point["changed"] == pytest.approx({place: float(share) for place, share in changed.items()}, abs=1e-3)
    weights, macs = net.weights(), 0.0
    for layer in net.encoder.layers().values():
        differ = float((weights[layer.weight] != net.encoder.get_parameter(layer.weight)).double().mean())
        macs += (float(changed[layer.reads]) + differ) * layer.tokens * layer.inputs * layer.outputs
    fixed = recorded(folder, spec)[0]["flops"]
    assert point["flops"] == pytest.approx(2 * macs + fixed["attention"] + fixed["decoder"], rel=1e-3)


def test_an_infinite_threshold_scores_as_the_bases_features(finished):
    """Base activations, read by the sub-task's decoder."""
    folder, spec = finished
    run = load_run(folder / spec.run_id, allow=["tests"])
    net, batch = run.method.double().network, torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    net.threshold = math.inf
    base = load_run(folder / spec.sources["base"]["run"], allow=["tests"]).method.double().network
    with torch.no_grad():
        maps = base.encoder(base.encoder.normalise(batch))
        expected = net.decode(maps, ["far"]).predictions["far"]
        torch.testing.assert_close(net(batch, ["far"]).predictions["far"], expected)


def test_two_ranks_measure_the_same_curve(finished, tmp_path, pool):
    spec = sourced(small(), str(tmp_path / "one"))
    trained(spec, str(tmp_path / "one"))
    pool.call(trained, sourced(small(), str(tmp_path / "two")), str(tmp_path / "two"), world=2)
    one, two = (recorded(tmp_path / name, spec)[0] for name in ("one", "two"))
    assert one["storage"] == two["storage"]
    for split_ in ("scores", "validation"):
        for a, b in zip(one["curves"][split_], two["curves"][split_], strict=True):
            assert a["changed"] == b["changed"] and a["flops"] == b["flops"]
            assert b["scores"]["far"] == pytest.approx(a["scores"]["far"], rel=1e-6)


def test_bfloat16_trains(tmp_path):
    spec = sourced(small(precision="bf16-mixed", steps=4), str(tmp_path))
    weights = trained(spec, str(tmp_path))
    assert all(value.isfinite().all() for name, value in weights.items() if name.startswith("network."))


def test_a_run_without_a_base_is_refused(tmp_path):
    with pytest.raises(MethodError, match="This run has none"):
        trained(small(), str(tmp_path))


# ---- the method -----------------------------------------------------------------------------------------------------


def test_the_price_of_gates_is_the_papers_sum_over_their_number():
    """λ Σ P(z > 0) / n: its gradient on one gate is λ σ'(α) / n, whatever the size of the network."""
    method = built(sparsity=4.3)
    method._state.step, method._state.batch = 0, {}
    terms = method.regularisation(None, None)
    assert list(terms) == ["open gates"]
    (price,) = terms.values()
    price.backward()
    count = sum(value.numel() for value in method.network.deltas.values())
    sigmoid = 1 / (1 + math.exp(-5))
    for gate in method.network.deltas.gates():
        torch.testing.assert_close(gate.grad, torch.full_like(gate, 4.3 * sigmoid * (1 - sigmoid) / count))
    opened = sum(gate.numel() for gate in method.network.deltas.gates())
    assert float(price) == pytest.approx(4.3 * sigmoid * opened / count, rel=1e-5)


def test_the_papers_values_are_the_defaults():
    """Its sums as means: 86 million gates of a ViT-B; activations of five images of 512 pixels, twelve blocks."""
    method = built()
    assert method.sparsity == pytest.approx(5e-8 * 86e6, rel=0.01)
    # 14 times the width of activations per token and block.
    assert method.closeness == pytest.approx(2.5e-10 * 5 * 1025 * 12 * 14 * 768, rel=0.03)
    assert (method.gate_lr, method.threshold) == (0.1, 0.15)


def test_factors_by_layer_reach_the_network_and_are_checked():
    assert built(layers={"qkv": 0.5}).network.encoder.factors["block1.qkv"] == 0.5
    for wrong in ({"qkv": -1.0}, {"qkv": "a"}, {"qkv": math.nan}, 3):
        with pytest.raises(MethodError, match="layers must map layers to finite factors"):
            built(layers=wrong)
    with pytest.raises(SuiteError, match="Unknown place 'kqv'"):
        built(layers={"kqv": 1.0})


def test_clipping_acts_on_changes_and_gates(tmp_path):
    """The official code clips the encoder's own parameters, which have no gradient."""
    Clipped.norms.clear()
    spec = sourced(small("tests.methods.plans.test_computation_sharing:Clipped", steps=3, clip=1e-3), str(tmp_path))
    trained(spec, str(tmp_path))
    assert len(Clipped.norms) == 3
    assert all(before > 0.1 and 0 < after <= 1e-3 for before, after in Clipped.norms)


def test_two_streams_pay_for_open_gates_and_distance_once():
    method = built(sparsity=4.3, closeness=2.0)
    image = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    one = {"image": image, "targets": {}, "counts": {}}
    with torch.no_grad():
        for value in method.network.deltas.values():
            value.normal_(std=0.1)
    outputs = method.network(image, ["far"])
    for step, name in ((0, "open gates"), (7, "distance")):
        method._state.step, prices = step, []
        for batch in (one, {"streams": {"a": one, "b": one}}):
            method._state.batch = batch
            prices.append(sum(method.regularisation(outputs, stream)[name] for stream in streams(batch)))
        assert prices[0] > 0
        torch.testing.assert_close(prices[0], prices[1])


def test_phases():
    method = built(prune=0.5, sparsify=0.25, closeness=2.0)
    image = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    with torch.no_grad():
        for value in method.network.deltas.values():
            value.normal_(std=0.1)
    outputs = method.network(image, ["far"])
    method._state.batch, found = {"image": image}, []
    for step in range(8):
        method._state.step = step
        found.append(method.regularisation(outputs, {"image": image}))
    assert [list(terms) for terms in found] == [["open gates"]] * 4 + [[]] * 2 + [["distance"]] * 2
    expected = 2 * activation_distance(outputs.statistics["trace"], method.network.base(image))
    torch.testing.assert_close(found[-1]["distance"], expected)
    # The base is frozen: no gradient goes to it, but one to every change before the last block's end.
    found[-1]["distance"].backward()
    assert all(p.grad is None for p in method.network.encoder.parameters())
    assert all(value.grad is not None for value in method.network.deltas.values())


def test_gates_have_their_own_rate_and_no_decay():
    method = built(gate_lr=0.3)
    groups = method.configure_optimizers()["optimizer"].param_groups
    gates = {id(p) for p in method.network.deltas.gates()}
    (own,) = [group for group in groups if {id(p) for p in group["params"]} & gates]
    assert {id(p) for p in own["params"]} == gates and own["initial_lr"] == 0.3 and own["weight_decay"] == 0
    every = [id(p) for group in groups for p in group["params"]]
    assert len(every) == len(set(every)) == sum(p.requires_grad for p in method.network.parameters())
    assert {group["initial_lr"] for group in groups if group is not own} == {1e-3}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"prune": 0.8, "sparsify": 0.3}, "sum to at most 1"),
        ({"prune": -0.1}, "shares of the steps"),
        ({"prune": math.nan}, "shares of the steps"),
        ({"sparsity": -1.0}, "finite and >= 0"),
        ({"closeness": math.nan}, "finite and >= 0"),
        ({"threshold": -0.1}, "thresholds must be >= 0"),
        ({"thresholds": [0.1, math.nan]}, "thresholds must be >= 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, word):
    with pytest.raises(MethodError, match=word):
        built(**arguments)


def test_it_is_found_by_name():
    assert registry.find("computation_sharing") is ComputationSharing
    assert callable(mtlbench.load_run)

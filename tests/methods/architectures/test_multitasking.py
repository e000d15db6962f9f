"""Multitasking: learning curves in closed form, choices of the agent, both regimes of the network, and the record."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec
from mtlbench.method.learning_curves import LearningCurves
from mtlbench.methods.architectures.multitasking import PARALLEL, SERIAL, Multitasking
from mtlbench.networks.film import CuedNetwork
from mtlbench.report.figures.regimes import TITLE, regime_figures
from mtlbench.report.reader import ReportInput, read_summary
from mtlbench.runs.store import RunFolder
from mtlbench.tasks import Depth, Normals
from mtlbench.testing import toy_spec, trained

MODEL = {"encoder": "test_resnet", "image_size": [32, 48], "decoder_channels": 8}
TASKS = {"depth": Depth("depth"), "normals": Normals("normals")}


def agent(*, seed: int = 0, cost: float = 0.0, steps: int = 20, tasks: Any = TASKS) -> Multitasking:
    method = Multitasking(MethodSpec(tasks, MODEL, steps=steps, seed=seed), cost=cost)
    method.configure_model()
    return method


def chosen(method: Multitasking, interval: int) -> int:
    method._choose(interval)
    return int(method.chosen[interval])


# ---- curves and choices ---------------------------------------------------------------------------------------------


def test_the_posterior_is_the_closed_form() -> None:
    curves, values = LearningCurves(10, prior=0.7, noise=0.1), [0.2, 0.35, 0.5, 0.45]
    for value in values:
        curves.observe(SERIAL, value)
    n = np.arange(1, 5)
    x = np.stack([np.ones(4), np.log1p(n) / np.log1p(10), n / 10], 1)
    covariance = np.linalg.inv(np.eye(3) / 0.49 + x.T @ x / 0.01)
    mean, found = curves.posterior(SERIAL)
    assert np.allclose(found, covariance) and np.allclose(mean, covariance @ x.T @ values / 0.01)
    assert curves.reached(SERIAL) == pytest.approx(x[-1] @ np.asarray(mean))
    # The other regime has its prior.
    assert np.allclose(curves.posterior(PARALLEL)[1], 0.49 * np.eye(3)) and curves.reached(PARALLEL) == 0


def test_the_prediction_adds_the_intervals_to_come() -> None:
    curves, w = LearningCurves(10, prior=1.0, noise=0.1), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    curves.observe(PARALLEL, 0.5)
    expected = sum(0.1 + 0.2 * math.log1p(n) / math.log1p(10) + 0.03 * n for n in (2, 3, 4))
    assert curves.ahead(PARALLEL, w, 3) == pytest.approx(expected)


def test_without_a_cost_equal_curves_are_a_coin_flip_and_a_large_cost_means_parallel() -> None:
    counts = dict.fromkeys((0.0, 1e6), 0)
    for cost in counts:
        method = agent(cost=cost)
        for regime in (SERIAL, PARALLEL):
            method.curves.observe(regime, 0.5)
        for seed in range(400):
            object.__setattr__(method.spec, "seed", seed)
            counts[cost] += chosen(method, 2)
    assert abs(counts[0.0] - 200) < 4 * 10 and counts[1e6] == 0  # Four standard deviations.


def test_the_utility_of_a_regime_by_hand() -> None:
    """R_parallel = Σ a and R_serial = Σ a - c (T - 1), over two tasks and the intervals that remain."""
    method = agent(cost=0.1)
    assert method._utility(1.5, PARALLEL, 3) == pytest.approx(2 * 1.5)
    assert method._utility(1.5, SERIAL, 3) == pytest.approx(2 * 1.5 - 3 * 0.1)
    three = agent(cost=0.1, tasks={**TASKS, "more": Depth("more")})
    assert three._utility(0.5, SERIAL) == pytest.approx(3 * 0.5 - 2 * 0.1)


def test_the_better_curve_is_chosen_once_both_are_known() -> None:
    method = agent(cost=0.1)
    for value in np.linspace(0.1, 0.7, 8):
        method.curves.observe(SERIAL, float(value))
        method.curves.observe(PARALLEL, float(value) / 4)
    assert sum(chosen(method, i) for i in range(16, 20)) == 4
    method._settle()
    assert method.network.serial
    method.cost = 5.0  # One further pass costs more than both tasks can gain.
    method._settle()
    assert not method.network.serial


def test_accuracy_is_the_share_of_the_first_loss_that_is_gone() -> None:
    method = agent()
    for losses in ([4.0, math.nan], [1.0, 2.0], [5.0, 1.0]):
        state = type("State", (), {"whole": type("W", (), {"means": lambda self, v=losses: torch.tensor(v)})()})()
        method._state = state  # type: ignore[assignment]
        method._note()
    assert method.first.tolist() == [4, 2] and method.seen.tolist() == [3, 2]
    assert method.sums.tolist() == [0 + 0.75 + 0, 0 + 0.5]
    method._observe(0)
    assert float(method.accuracy[0]) == pytest.approx((0.25 + 0.25) / 2) and not method.sums.any()


@pytest.mark.parametrize(
    "wrong", [{"cost": -0.1}, {"cost": math.inf}, {"intervals": 0}, {"prior": 0.0}, {"noise": -1.0}]
)
def test_mistakes_are_told(wrong: dict[str, float]) -> None:
    with pytest.raises(MethodError, match=rf"multitasking: .*{next(iter(wrong))}.*Found .*default"):
        Multitasking(MethodSpec(TASKS, MODEL), **wrong)


# ---- network and training -------------------------------------------------------------------------------------------


def test_regimes_differ_by_cues_alone_and_the_regime_is_stored() -> None:
    torch.manual_seed(0)
    network = CuedNetwork(TASKS, **MODEL).eval()
    image = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    parallel = network(image, ["depth", "normals"])
    network.use(serial=True)
    serial = network(image, ["depth", "normals"])
    assert all(torch.equal(parallel.predictions[t], serial.predictions[t]) for t in TASKS)
    assert parallel.representation is not None and serial.representation is None
    with torch.no_grad():
        network.cues["depth"][1].gamma.fill_(0.5)
    changed = network(image, ["depth", "normals"]).predictions
    assert not torch.equal(changed["depth"], serial.predictions["depth"])
    assert torch.equal(changed["normals"], serial.predictions["normals"])
    other = CuedNetwork(TASKS, **MODEL)
    other.load_state_dict(network.state_dict())
    assert other.serial and not CuedNetwork(TASKS, **MODEL).serial


def test_cues_rest_in_the_parallel_regime(tmp_path: Path) -> None:
    never = toy_spec("multitasking", steps=4, arguments={"cost": 1e6})
    weights = trained(never, str(tmp_path))
    assert weights and not any(value.any() for name, value in weights.items() if ".cues." in name)
    summary = json.loads((tmp_path / never.run_id / "summary.json").read_text())["regimes"]
    assert summary["chosen"] == [0] * 4 and not summary["serial"] and summary["cost"] == 1e6
    assert len(summary["accuracy"]) == 4 and summary["utility"]["serial"] < 0 <= summary["utility"]["parallel"]


@pytest.mark.parametrize("serial", [True, False])
def test_momentum_moves_no_idle_cue(serial: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtlbench.method.step.before_optimiser", lambda *_: None)
    method = agent()
    method.network.use(serial=serial)
    for parameter in method.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    method.on_before_optimizer_step(torch.optim.SGD(method.network.parameters()))
    assert all((p.grad is not None) == serial for p in method.network.cues.parameters())
    assert all(p.grad is not None for p in method.network.heads.parameters())


def test_both_regimes_train_and_their_flops_are_counted_apart(tmp_path: Path) -> None:
    spec = toy_spec("multitasking", steps=6, arguments={"cost": 0.0, "intervals": 6})
    weights = trained(spec, str(tmp_path))
    summary = json.loads((tmp_path / spec.run_id / "summary.json").read_text())["regimes"]
    assert set(summary["chosen"]) == {0, 1}
    assert weights and any(value.any() for name, value in weights.items() if ".cues." in name)
    flops = RunFolder(tmp_path, spec.run_id).result()["cost"]["training_flops"]
    never = toy_spec("multitasking", steps=6, arguments={"cost": 1e6, "intervals": 6})
    trained(never, str(tmp_path))
    least = RunFolder(tmp_path, never.run_id).result()["cost"]["training_flops"]
    assert least < flops < 4 * least
    # A budget asks a method without a network.
    assert Multitasking(MethodSpec(TASKS, MODEL, steps=4)).phase(0) == "losses" != agent().phase(0)


# ---- the report -----------------------------------------------------------------------------------------------------


def test_regimes_are_drawn_over_costs(tmp_path: Path) -> None:
    def record(cost: float, serial: bool, *chosen: int) -> dict[str, Any]:
        return {"cost": cost, "serial": serial, "chosen": [*chosen], "utility": {"serial": 1 - cost, "parallel": 0.5}}

    found = {"free": [record(0.0, True, 1, 1), record(0.0, False, 1, 0)], "dear": [record(0.1, False, 0, 0)]}
    share, serial, parallel = regime_figures(found)[TITLE].data
    assert list(share.x) == [0.0, 0.1] and list(share.y) == [0.75, 0.0] and "1 of 2 seeds" in share.hovertext[0]
    assert list(serial.y) == [1.0, 0.9] and list(parallel.y) == [0.5, 0.5] and regime_figures({}) == {}
    # A record of another shape is left out.
    (tmp_path / "a").mkdir()
    study = ReportInput(tmp_path, {}, {"a": {}}, {})
    for regimes, known in ((found["free"][0], True), ({**found["free"][0], "chosen": "x"}, False)):
        (tmp_path / "a" / "summary.json").write_text(json.dumps({"regimes": regimes}))
        assert ("regimes" in read_summary(study, "a")) == known

"""One optimiser step: accumulation, precision, look-ahead, streams, ranks, and what must leave no trace."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from mtlbench.balancing import make_balancer
from mtlbench.balancing.gradients.diagnostics import Snapshot, conflict_row
from mtlbench.errors import DivergedError, MethodError
from mtlbench.method import MethodSpec
from mtlbench.runs.store import RunFolder
from mtlbench.testing import TOLERANCE, ToyData, difference, toy_spec, trained
from mtlbench.training import checkpoint
from tests.support.balancers import CONFLICT, gramian_of, rows
from tests.support.step_parts import Looking, OwnRule, Recording, trained_in_fp16

TINY = "tests.support.step_parts:Tiny"


def on(data, spec):
    """Returns the run on another data module of `step_parts`."""
    return replace(spec, data={**spec.data, "module": f"tests.support.step_parts:{data}"})


def identical(one, other):
    return difference(one, other) == 0


def parity(spec, pool, folder):
    """Returns the difference of one process and two ranks."""
    two = pool.call(trained, spec, str(folder / "two"), world=2)
    assert identical(two[0], two[1])
    return difference(trained(spec, str(folder / "one")), two[0])


# ---- accumulation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uniform", "uncertainty", "dwa", "pcgrad", "graddrop"])
def test_two_micro_batches_are_one_batch(name, tmp_path):
    one, two = (
        trained(toy_spec(TINY, balancer=name, steps=8, ragged=False, accumulate=n), str(tmp_path)) for n in (1, 2)
    )
    assert difference(one, two) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "ragged"), [("tests.support.step_parts:Geometric", False), ("famo", False), ("uniform", True)]
)
def test_micro_batches_differ_for_other_losses_and_ragged_labels(name, ragged, tmp_path):
    one, two = (
        trained(toy_spec(TINY, balancer=name, steps=8, ragged=ragged, accumulate=n), str(tmp_path)) for n in (1, 2)
    )
    assert 1e-6 < difference(one, two) < 1


def test_a_steps_context_covers_all_micro_batches(tmp_path):
    found = []
    for accumulate in (1, 2, 4):
        Recording.seen.clear()
        trained(
            toy_spec(TINY, balancer="tests.support.step_parts:Recording", steps=4, accumulate=accumulate), str(tmp_path)
        )
        assert [step for step, *_ in Recording.seen] == [0, 1, 2, 3]
        found.append(list(Recording.seen))
    for other in found[1:]:
        torch.testing.assert_close(other[0][2], found[0][0][2])  # equal weights only before the first step
        assert [active for _, active, _ in other] == [active for _, active, _ in found[0]]


def test_accumulation_over_ranks_and_resumes(pool, tmp_path):
    spec = toy_spec(TINY, balancer="pcgrad", steps=12, accumulate=2, arguments={"dropout": 0.0})
    straight = trained(spec, str(tmp_path / "one"))
    two = pool.call(trained, spec, str(tmp_path / "two"), world=2)[0]
    assert difference(straight, two) <= TOLERANCE
    assert trained(spec, str(tmp_path / "broken"), stop_at=5) is None
    assert identical(straight, trained(spec, str(tmp_path / "broken")))


def test_dropout_is_repeated_after_a_resume(tmp_path):
    spec = toy_spec(TINY, balancer="famo", steps=10, accumulate=2, arguments={"dropout": 0.3})
    straight = trained(spec, str(tmp_path / "one"))
    assert trained(spec, str(tmp_path / "broken"), stop_at=5) is None
    assert identical(straight, trained(spec, str(tmp_path / "broken")))


# ---- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uniform", "pcgrad", "graddrop"])
def test_bf16(name, tmp_path):
    full, half = (
        trained(toy_spec(TINY, balancer=name, steps=4, precision=p), str(tmp_path)) for p in ("32-true", "bf16-mixed")
    )
    assert all(value.dtype == torch.float32 for key, value in half.items() if key.startswith("network."))
    assert 0 < difference(full, half) < 0.2


@pytest.mark.parametrize("name", ["uniform", "pcgrad"])
def test_fp16_steps_as_full_precision_does(name, tmp_path):
    spec = toy_spec(TINY, balancer=name, steps=4, accumulate=2, precision="32-true")
    full = trained(spec, str(tmp_path / "full"))
    half, scale = trained_in_fp16(spec, str(tmp_path / "half"))
    assert scale == 2.0**8
    assert 0 < difference(full, half) < 0.1


@pytest.mark.parametrize("balancer", ["uniform", "pcgrad", "graddrop"])
def test_an_overflow_on_one_rank_skips_the_step_on_all(balancer, pool, tmp_path):
    options = {"balancer": balancer, "precision": "32-true", "local": {"checkpoint_every": 1}}
    spec = toy_spec("tests.support.step_parts:Overflowing", steps=2, **options)
    first = trained_in_fp16(replace(spec, trainer={**spec.trainer, "steps": 1}), str(tmp_path / "first"))[0]
    alone, scale = trained_in_fp16(spec, str(tmp_path / "alone"))
    assert scale == 2.0**7, "the scaler saw the overflow"
    assert identical(first, alone)
    answers = pool.call(trained_in_fp16, spec, str(tmp_path / "two"), world=2)
    assert [scale for _, scale in answers] == [2.0**7, 2.0**7]
    one_step = replace(spec, trainer={**spec.trainer, "steps": 1})
    start = pool.call(trained_in_fp16, one_step, str(tmp_path / "start"), world=2)[0][0]
    assert identical(start, answers[0][0])
    assert all(value.isfinite().all() for value in answers[0][0].values())


# ---- look-ahead -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_look_ahead_leaves_no_trace(norm, tmp_path):
    Looking.seen.clear()
    blind, looking = (
        trained(
            toy_spec(
                TINY, balancer=f"tests.support.step_parts:{name}", steps=6, arguments={"norm": norm, "dropout": 0.2}
            ),
            str(tmp_path),
        )
        for name in ("Blind", "Looking")
    )
    assert identical(blind, looking)
    assert len(Looking.seen) == 6 * 4
    for _, nothing, losses, after in Looking.seen[0:24:4]:
        # Without a change, before the step: the very losses, dropout included.
        assert nothing
        torch.testing.assert_close(after, losses, rtol=1e-12, atol=0)
    assert all(not torch.equal(after, losses) for _, _, losses, after in Looking.seen[1:24:4])


def test_a_look_ahead_in_low_precision_sees_the_change(tmp_path):
    Looking.seen.clear()
    blind, looking = (
        trained(
            toy_spec(TINY, balancer=f"tests.support.step_parts:{name}", steps=2, precision="bf16-mixed"), str(tmp_path)
        )
        for name in ("Blind", "Looking")
    )
    assert identical(blind, looking)
    for _, _, losses, after in Looking.seen[1::4]:
        assert ((after - losses).abs() > 1e-3 * losses).all()


def test_a_look_ahead_leaves_the_optimiser_alone(tmp_path):
    states = []
    for name in ("Blind", "Looking"):
        spec = toy_spec(TINY, balancer=f"tests.support.step_parts:{name}", steps=10)
        assert trained(spec, str(tmp_path), stop_at=5) is None
        states.append(checkpoint.load(checkpoint.newest(RunFolder(tmp_path, spec.run_id).path))["optimizer_states"][0])
    for one, other in zip(*(state["state"].values() for state in states), strict=True):
        assert identical(one, other)


# ---- ranks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tests.support.step_parts:Geometric", "tests.support.step_parts:Looking"])
def test_non_linear_and_looking_rules_on_two_ranks(name, pool, tmp_path):
    assert parity(toy_spec(TINY, balancer=name, steps=8), pool, tmp_path) <= TOLERANCE


@pytest.mark.parametrize("name", ["uniform", "uncertainty", "famo", "dwa", "pcgrad", "graddrop"])
def test_a_step_without_any_label(name, pool, tmp_path):
    spec = on("Bare", toy_spec(TINY, balancer=name, steps=4))
    assert parity(spec, pool, tmp_path) <= TOLERANCE


@pytest.mark.parametrize("name", ["uniform", "pcgrad", "famo"])
def test_streams(name, pool, tmp_path):
    spec = on("Streams", toy_spec(TINY, balancer=name, steps=8, local={"examples": 4}))
    assert parity(spec, pool, tmp_path) <= TOLERANCE
    folders = [RunFolder(tmp_path / side, spec.run_id).path for side in ("one", "two")]
    scores = [json.loads((folder / "result.json").read_text())["scores"] for folder in folders]
    assert set(scores[0]) == set(ToyData.TASKS)
    for task, values in scores[0].items():
        assert values == pytest.approx(scores[1][task]) and all(math.isfinite(v) for v in values.values())


def test_streams_of_the_task_moe(pool, tmp_path):
    # One size, as its transformer needs; the load balance joins the streams.
    spec = replace(
        toy_spec("task_moe", steps=4), data={"module": "tests.support.step_parts:EqualStreams", "options": {}}
    )
    assert parity(spec, pool, tmp_path) <= TOLERANCE


def test_a_frozen_encoder(pool, tmp_path):
    spec = toy_spec("tests.support.step_parts:Frozen", balancer="pcgrad", steps=4)
    assert parity(spec, pool, tmp_path) <= TOLERANCE
    start = trained(replace(spec, trainer={**spec.trainer, "steps": 1}), str(tmp_path / "start"))
    end = checkpoint.load(RunFolder(tmp_path / "one", spec.run_id).path / "final.ckpt")["state_dict"]
    moved = {name for name in end if not torch.equal(start[name], end[name])}
    assert not any("encoder" in name for name in moved)
    assert any("neck" in name for name in moved) and any("heads" in name for name in moved)


# ---- diagnostics and messages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uniform", "famo", "pcgrad", "graddrop"])
def test_diagnostics_do_not_change_the_weights(name, tmp_path):
    plain, measured = (
        trained(toy_spec(TINY, balancer=name, steps=6, local={"diagnose_every": n}), str(tmp_path / str(n)))
        for n in (0, 2)
    )
    assert identical(plain, measured)
    run_id = toy_spec(TINY, balancer=name, steps=6).run_id
    lines = (RunFolder(tmp_path / "2", run_id).path / "metrics.jsonl").read_text().splitlines()
    logged = [row["step"] for row in map(json.loads, lines) if "gradient/conflicts" in row]
    assert logged == [1, 3, 5]  # steps 0, 2 and 4, counted once they are done


def measured(spec, folder):
    """Returns the rows of a run that tell of its updates, by step."""
    lines = (RunFolder(folder, spec.run_id).path / "metrics.jsonl").read_text().splitlines()
    found = [
        (row["step"], {k: v for k, v in row.items() if k.startswith("gradient/")}) for row in map(json.loads, lines)
    ]
    return {step: row for step, row in found if row}


@pytest.mark.parametrize("name", ["uniform", "pcgrad", "mgda_ub"])
def test_a_run_that_was_stopped_has_the_rows_of_one_that_was_not(name, tmp_path):
    """Neither logging nor stopping falls on a step that is measured; a row is written in the step it tells of."""
    spec = toy_spec("uniform", steps=13, local={"log_every": 4, "diagnose_every": 3, "checkpoint_every": 7})
    spec.method["path"] = spec.method["name"] = name
    trained(spec, str(tmp_path / "whole"))
    for stop in (5, 10):
        assert trained(spec, str(tmp_path / "cut"), stop_at=stop) is None
    trained(spec, str(tmp_path / "cut"))
    whole = measured(spec, tmp_path / "whole")
    assert list(whole) == [1, 4, 7, 10, 13] and measured(spec, tmp_path / "cut") == whole
    for at in ("whole", "cut"):
        result = json.loads((tmp_path / at / spec.run_id / "result.json").read_text())
        assert result["conflict_share"] == sum(row["gradient/conflicts"] > 0 for row in whole.values()) / 5


def test_diagnostics_are_of_the_shared_parameters_whatever_the_view(tmp_path):
    """Rules on a view are measured as all others; only the weights are what they made of the view."""
    found = {}
    for name in ("uniform", "mgda", "mgda_ub", "gradnorm"):
        spec = toy_spec("uniform", steps=1, local={"diagnose_every": 1})
        spec.method["path"] = spec.method["name"] = name
        trained(spec, str(tmp_path))
        found[name] = measured(spec, tmp_path)[1]
    same = [key for key in found["uniform"] if "weight" not in key and "turn" not in key]
    for row in found.values():
        assert {key: row[key] for key in same} == pytest.approx({key: found["uniform"][key] for key in same}, rel=1e-9)
    weights = {name: [v for k, v in row.items() if "weight" in k] for name, row in found.items()}
    assert weights["gradnorm"] == pytest.approx([1.0] * 4) and sum(weights["mgda_ub"]) == pytest.approx(4)
    assert weights["mgda_ub"] != pytest.approx(weights["mgda"], rel=1e-2)


@pytest.mark.parametrize("name", ["tests.support.step_parts:NothingShared", "tests.support.step_parts:Frozen"])
def test_where_nothing_is_shared_nothing_is_measured(name, tmp_path):
    spec = toy_spec(name, balancer="pcgrad", steps=2, local={"diagnose_every": 1})
    trained(spec, str(tmp_path))
    found = measured(spec, tmp_path)
    assert found == {} if name == "tests.support.step_parts:NothingShared" else set(found) == {1, 2}


def test_a_weight_of_zero_leaves_out_what_it_hides(tmp_path):
    spec = toy_spec(TINY, balancer="fixed", steps=1, local={"diagnose_every": 1})
    spec.method["balancer"]["arguments"]["weights"] = [1.0, 0.0, 2.0, 1.0]
    trained(spec, str(tmp_path))
    (row,) = measured(spec, tmp_path).values()
    assert all(math.isfinite(value) for value in row.values()) and "gradient/turn" not in row
    names = list(ToyData.TASKS)
    assert row[f"gradient/weight/{names[1]}"] == 0 and row[f"gradient/weight/{names[2]}"] == 2
    assert not [key for key in row if names[1] in key.replace("|", "/").split("/") and "weight" not in key]
    assert sum(key.startswith("gradient/cosine/") for key in row) == 3 and 1 <= row["gradient/condition"] < 1e8


def test_diagnostics_agree_over_ranks_and_methods(pool, tmp_path):
    found = {}
    for name in ("uniform", "pcgrad"):
        for world in (1, 2):
            spec = toy_spec(TINY, balancer=name, steps=1, local={"diagnose_every": 1})
            folder = tmp_path / f"{name}-{world}"
            if world == 1:
                trained(spec, str(folder))
            else:
                pool.call(trained, spec, str(folder), world=2)
            line = (RunFolder(folder, spec.run_id).path / "metrics.jsonl").read_text().splitlines()[0]
            row = json.loads(line)
            found[name, world] = {key: value for key, value in row.items() if key.startswith("gradient/")}
    reference = {key: value for key, value in found["uniform", 1].items() if "weight" not in key and "turn" not in key}
    assert len(reference) == 6 + 4 + 3
    for row in found.values():
        assert {key: row[key] for key in reference} == pytest.approx(reference, rel=1e-9)
    assert found["uniform", 1]["gradient/turn"] == pytest.approx(0, abs=1e-5)
    assert found["pcgrad", 2] == pytest.approx(found["pcgrad", 1], rel=1e-9)


def seen(gradients, weights=None, loss_weights=None):
    """Returns the snapshot of an update from the gradients of unweighted losses."""
    ones = torch.ones(len(gradients), dtype=gradients.dtype)
    weights, c = ones if weights is None else weights, ones if loss_weights is None else loss_weights
    return Snapshot.of_weights(tuple(range(len(gradients))), gramian_of(c[:, None] * gradients), weights, c)


def test_conflict_row():
    row = conflict_row(seen(rows(*CONFLICT), weights=rows(2.0, 1.5)), ["a", "b"])
    # By hand: the update of weights (2, 1.5) is (.5, 1.5), the plain sum (0, 1).
    assert row == pytest.approx(
        {
            "gradient/cosine/a|b": -(0.5**0.5),
            "gradient/norm/a": 1.0,
            "gradient/norm/b": 2**0.5,
            "gradient/weight/a": 2.0,
            "gradient/weight/b": 1.5,
            "gradient/conflicts": 1.0,
            "gradient/similarity": 2 * 2**0.5 / 3,
            "gradient/condition": 1 + 2**0.5,
            "gradient/turn": round(math.degrees(math.acos(1.5 / 2.5**0.5)), 4),
        }
    )
    three = conflict_row(seen(rows((1.0, 0.0), (0.0, 2.0), (-1.0, 0.0))), ["a", "b", "c"])
    assert three["gradient/conflicts"] == pytest.approx(1 / 3) and three["gradient/condition"] == 1e8
    assert three["gradient/cosine/a|b"] == 0 and three["gradient/cosine/a|c"] == -1
    zero = conflict_row(seen(rows((0.0, 0.0), (0.0, 2.0))), ["a", "b"])
    assert zero["gradient/cosine/a|b"] == 0 and zero["gradient/conflicts"] == 0


def test_conflict_row_has_no_numbers_that_are_none():
    """By hand: rows (1, 0), (0, 2), and a third whose loss has weight 0."""
    hidden = seen(rows((1.0, 0.0), (0.0, 2.0), (5.0, 5.0)), loss_weights=rows(1.0, 1.0, 0.0))
    assert conflict_row(hidden, ["a", "b", "c"]) == pytest.approx(
        {
            "gradient/cosine/a|b": 0.0,
            "gradient/norm/a": 1.0,
            "gradient/norm/b": 2.0,
            "gradient/weight/a": 1.0,
            "gradient/weight/b": 1.0,
            "gradient/weight/c": 0.0,
            "gradient/conflicts": 0.0,
            "gradient/similarity": 0.8,
            "gradient/condition": 1.0,
        }
    )
    alone = conflict_row(seen(rows(*CONFLICT), loss_weights=rows(0.0, 1.0)), ["a", "b"])
    assert alone == pytest.approx({"gradient/norm/b": 2**0.5, "gradient/weight/a": 0.0, "gradient/weight/b": 1.0})
    still = conflict_row(seen(torch.zeros(3, 2).double()), ["a", "b", "c"])
    assert all(math.isfinite(value) for value in still.values())
    assert "gradient/turn" not in still and "gradient/similarity" not in still
    one = conflict_row(seen(rows((0.0, 0.0), (0.0, 0.0), (3.0, 0.0))), ["a", "b", "c"])
    assert one["gradient/similarity"] == 0 and one["gradient/turn"] == pytest.approx(0)
    assert conflict_row(seen(rows((math.inf, 0.0), (0.0, 2.0))), ["a", "b"]) == {}


def test_conflict_row_sees_through_loss_weights():
    plain = conflict_row(seen(rows(*CONFLICT), weights=rows(2.0, 1.5)), ["a", "b"])
    weighted = seen(rows(*CONFLICT), weights=rows(1.0, 3.0), loss_weights=rows(2.0, 0.5))
    assert conflict_row(weighted, ["a", "b"]) == pytest.approx(plain)


def test_the_update_of_a_rule_on_the_jacobian_is_seen(tmp_path):
    """A Jacobian rule gives no weights; half the sum has weights of a half, and is not turned."""
    spec = toy_spec(TINY, balancer="tests.support.step_parts:Blind", steps=1, local={"diagnose_every": 1})
    trained(spec, str(tmp_path))
    row = json.loads((RunFolder(tmp_path, spec.run_id).path / "metrics.jsonl").read_text().splitlines()[0])
    weights = [value for key, value in row.items() if key.startswith("gradient/weight/")]
    assert weights == pytest.approx([0.5] * 4) and row["gradient/turn"] == pytest.approx(0, abs=1e-5)


def test_a_diverged_loss_is_named(tmp_path):
    with pytest.raises(DivergedError, match="loss or gradient of mean was not at step 3"):
        trained(on("Broken", toy_spec(TINY, steps=6)), str(tmp_path))


def test_one_rule_balances_a_run():
    method = OwnRule(MethodSpec(dict(ToyData.TASKS)))
    with pytest.raises(MethodError, match="OwnRule overrides gradient_weights itself .* PCGrad"):
        method.use_balancer(make_balancer("pcgrad"))

"""The step that a rule tries: the plain one of the papers, or the optimiser's own. Against loops written out."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from mtlbench import registry
from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec
from mtlbench.methods.grouping.tag import TAG
from mtlbench.methods.probes.hydalearn import HydaLearn
from mtlbench.tasks import Regression
from tests.support.balancers import context
from tests.support.command_line import mtlbench, write_suite
from tests.support.grouping_plans import drive, spec, told

LR, MOMENTUM = 0.1, 0.9
NAMES = ("tag", "inter_task_affinity", "it_mtl", "hydalearn")
TASKS = range(3)


def drawn(seed):
    """Returns targets (3, 4) of L_i = ½ ‖x - t_i‖², and the momentum (4,) of an optimiser at x = 0."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    targets = targets * 3 ** torch.randn(3, 1, generator=generator, dtype=torch.float64) + seed % 2
    return targets, 2 * torch.randn(4, generator=generator, dtype=torch.float64)


def followed(rule, targets, momentum):
    """Returns the direction of a rule whose optimiser is gradient descent with momentum."""

    def lookahead(change, tasks=None):
        x = torch.zeros(4, dtype=torch.float64) if change is None else change
        found = (x - targets).square().sum(1) / 2
        return found if tasks is None else found[list(tasks)]

    ctx = replace(
        context(lookahead(None), lookahead=lookahead),
        descent=lambda g: -LR * g,
        preview=lambda g: -LR * (g + MOMENTUM * momentum),
        lr=LR,
    )
    return rule.combine_gradients(-targets, ctx)


def gain(targets, momentum, preview, members, recipient):
    """Returns Z_{J→j} from x = 0, one coordinate at a time."""
    before = after = 0.0
    for k, target in enumerate(targets[recipient].tolist()):
        gradient = sum(-float(targets[i, k]) for i in members)
        x = -LR * (gradient + (MOMENTUM * float(momentum[k]) if preview == "optimiser" else 0.0))
        before, after = before + (0.0 - target) ** 2 / 2, after + (x - target) ** 2 / 2
    return 1 - after / before


def table(targets, momentum, preview):
    return [[gain(targets, momentum, preview, [i], j) for i in TASKS] for j in TASKS]


def hydalearn(**arguments):
    return HydaLearn(MethodSpec({name: Regression(name) for name in "abc"}), **arguments)


def summed_up(rule):
    return torch.tensor(rule.summary()["affinity"], dtype=torch.float64)


@pytest.mark.parametrize("preview", ["gradient", "optimiser"])
def test_every_rule_against_a_loop(preview):
    chosen = set()
    for seed in range(8):
        targets, momentum = drawn(seed)
        given, options = (targets, momentum), {} if preview == "gradient" else {"preview": preview}
        expected = table(*given, preview)

        probe = make_balancer("inter_task_affinity", per_lr=False, **options)
        probe.configure(3)
        assert_close(followed(probe, *given), -targets.sum(0))
        assert_close(summed_up(probe), torch.tensor(expected).double(), atol=1e-6, rtol=0)

        rule = make_balancer("it_mtl", **options)
        rule.configure(3)
        sets = [(0, 1, 2), (0,), (1,), (2,), *itertools.combinations(TASKS, 2)]
        best = max(sets, key=lambda members: sum(gain(*given, preview, members, j) for j in TASKS))
        assert_close(followed(rule, *given), -targets[list(best)].sum(0))
        assert_close(summed_up(rule), torch.tensor(expected).double(), atol=1e-6, rtol=0)
        chosen.add(best)

        method = hydalearn(main="b", w_min=0.0, **options)
        gains = [max(value, 0.0) for value in expected[1]]
        weights = torch.tensor([3 * g / sum(gains) if sum(gains) else 1.0 for g in gains]).double()
        assert_close(followed(method, *given), weights @ -targets, atol=1e-6, rtol=1e-6)

        method = hydalearn(main="all", **options)
        followed(method, *given)
        assert_close(summed_up(method), torch.tensor(expected).double(), atol=1e-6, rtol=0)
    assert len(chosen) > 2


def test_common_momentum_makes_the_rows_of_all_sources_alike():
    """What was measured on a suite, in small: a long common step hides whose gradient it was."""
    targets, momentum = drawn(3)
    plain, own = (torch.tensor(table(targets, 20 * momentum, preview)) for preview in ("gradient", "optimiser"))
    spread = [t.std(1).mean() / t.abs().mean() for t in (plain, own)]
    assert spread[1] < 0.5 * spread[0]


def test_tag_measures_with_the_step_that_it_is_given():
    found = {}
    for options in ({}, {"preview": "gradient"}, {"preview": "optimiser"}):
        (first, _), _ = drive(spec("tag", **options), told([[0.0] * 4] * 4))
        found[str(options)] = first[0]
    default, plain, own = found.values()
    assert default.run_id == plain.run_id != own.run_id
    assert [run.method["arguments"]["preview"] for run in (plain, own)] == ["gradient", "optimiser"]


@pytest.mark.parametrize("name", NAMES)
def test_a_preview_that_does_not_exist_is_refused(name):
    makers = {
        "hydalearn": hydalearn,
        "tag": lambda **options: TAG(MethodSpec({"a": Regression("a"), "b": Regression("b")}), **options),
    }
    with pytest.raises(MethodError, match=f"{name}: Unknown preview 'optimizer'. Did you mean 'optimiser'") as error:
        makers.get(name, lambda **options: make_balancer(name, **options))(preview="optimizer")
    assert "Known: gradient, optimiser" in str(error.value)


def test_a_suite_with_one_is_refused_before_anything_is_trained(tmp_path: Path):
    methods = "[{name: tag, preview: gradiant}]"
    model = "{encoder: resnet10t, image_size: [32, 32]}"
    parts = ("name: mine", "version: 1", "data: {module: data_modules.digits:Digits}", f"methods: {methods}")
    write_suite(tmp_path, "mine", "\n".join([*parts, f"model: {model}", "trainer: {steps: 1}", ""]))
    answer = mtlbench(tmp_path, "bench", "mine.yaml", "--dry")
    assert answer.code == 2 and "Unknown preview 'gradiant'. Did you mean 'gradient'" in answer.text, answer.text


@pytest.mark.parametrize("name", NAMES)
def test_a_search_does_not_vary_it_and_new_results_are_told_from_old(name):
    cls = registry.find(name)
    assert "preview" not in cls.SEARCH and cls.VERSION == 2
    assert registry.record(name)["arguments"]["preview"] == "gradient"

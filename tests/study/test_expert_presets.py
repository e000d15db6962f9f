"""Presets of the papers' sizes: what they hold, what that costs by formula, and that they can be built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mtlbench import suite as suites
from mtlbench.data_modules.miniatures import MINIATURES
from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.experts.network import ExpertNetwork
from mtlbench.networks.experts.trunk import ExpertOptions
from mtlbench.networks.flops import forward_flops
from mtlbench.study.resolve import Local, resolve
from mtlbench.tasks import Depth
from mtlbench.training.build import build

FOLDER = Path(__file__).resolve().parents[2] / "experiments/presets"
SMALL = (
    "model.encoder_options={patch_size: 8, embed_dim: 12, depth: 2, num_heads: 6}", "model.image_size=[32,48]",
    "data.options.size=[32,48]", "trainer.steps=2", "trainer.batch_size=4", "trainer.accumulate=2",
    "trainer.evaluate_every=0", "trainer.workers=0", "model.decoder_channels=8", "optimiser.warmup=0",
    "floor=false",
)  # fmt: skip
TOKENS = 197


def preset(size, root, *words):
    return resolve(suites.load(str(FOLDER / f"mod_squad_vit_{size}.yaml"), words), Local(data=str(root)), list(words))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return MINIATURES["taskonomy"](tmp_path_factory.mktemp("taskonomy"), train=8, val=2)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTLBENCH_CACHE", str(tmp_path / "cache"))


# Width; attention experts, per token; millions in blocks, routers; GMACs of the blocks for a task, dense, sparse.
PAPER = {"small": (384, 15, 6, 48.5, 0.93, 4.54, 4.85), "base": (768, 24, 12, 185.4, 2.4, 17.45, 18.07)}


@pytest.mark.parametrize("size", PAPER)
def test_sizes_are_the_paper_s(size, data):
    width, experts, chosen, in_blocks, in_routers, dense_macs, sparse_macs = PAPER[size]
    (spec,) = (case.spec for case in preset(size, data, "trainer.batch_size=8").cases if case.spec.label == "mod_squad")
    known = {k: v for k, v in spec.method["arguments"].items() if k in ExpertOptions.__dataclass_fields__}
    model = {k: v for k, v in spec.model.items() if not k.startswith("weights")}
    tasks = {task: Depth(task) for task in spec.tasks}
    with torch.device("meta"):  # without the work of drawing weights
        sparse, dense = ExpertNetwork(tasks, ExpertOptions(**known), **model), DenseNetwork(tasks, **model)
    attention, mlp = sparse.layers["block0.attention"], sparse.layers["block1.mlp"]
    assert attention.experts.query.shape == (experts, width, 128) and attention.router.top_k == chosen
    assert mlp.experts.weight1.shape == (16, width, width) and mlp.router.top_k == 4 and len(sparse.layers) == 12
    routers = sum(p.numel() for router in sparse.routers for p in router.parameters())
    blocks = sum(p.numel() for p in sparse.encoder.blocks.parameters()) - routers
    assert routers == 13 * 6 * width * (experts + 16)
    assert round(blocks / 1e6, 1) == in_blocks and routers / 1e6 == pytest.approx(in_routers, rel=0.01)
    image = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    first = next(iter(tasks))
    whole, found = (forward_flops(n.to_empty(device="cpu").eval(), image, [first]) / 2 for n in (dense, sparse))
    by_formula = 12 * (TOKENS * 12 * width**2 + 2 * TOKENS**2 * width)
    second_biases = 6 * TOKENS * 16 * width
    assert round(by_formula / 1e9, 2) == dense_macs
    assert round((by_formula + found - whole - second_biases) / 1e9, 2) == sparse_macs


@pytest.mark.parametrize("size", PAPER)
def test_shrunk_every_method_has_its_network_and_answers(size, data):
    specs = {case.spec.label: case.spec for case in preset(size, data, *SMALL).cases}
    assert list(specs) == ["single_task", "uncertainty", "moe", "task_moe", "m3vit", "mod_squad", "mod_squad_0"]
    for label in ("uncertainty", "m3vit", "mod_squad"):
        method, module = build(specs[label])
        method.configure_model()
        batch = next(iter(module.eval_dataloader("val")))
        answers = method.eval()(batch["image"])
        assert set(answers) == set(specs[label].tasks) and all(value.isfinite().all() for value in answers.values())
    assert specs["mod_squad"].method["balancer"]["name"] == "uncertainty"

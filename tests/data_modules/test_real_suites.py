"""The suites on real layouts: trained, evaluated, resumed, on one and two ranks; and what a run does with bad files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mtlbench import registry
from mtlbench import suite as suites
from mtlbench.data_modules.miniatures import MINIATURES
from mtlbench.data_modules.nyud import Nyud
from mtlbench.errors import DataError
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder, read_json
from mtlbench.study.resolve import Local, resolve
from mtlbench.tasks.inputs import IMAGES
from mtlbench.testing.contracts import TOLERANCE, difference
from mtlbench.testing.toy import trained
from tests.support.command_line import mtlbench

SUITES = {
    name: sample
    for name in suites.available()
    if (sample := suites.load(name, []).data.module.split(":")[0].split(".")[-1]) in MINIATURES
}
"""Every suite that reads files, and whose layout they have."""
IMAGE_SUITES = [name for name in SUITES if registry.load(suites.load(name, []).data.module).INPUTS == IMAGES]

STEPS = 12
STOP = 10
"""A step at which a run asks whether it should stop."""


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("copies")
    for name in MINIATURES:
        MINIATURES[name](place / name, train=8, val=2)
    return place


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLBENCH_CACHE", str(tmp_path / "cache"))


def overrides(*more: str) -> list[str]:
    return [
        f"trainer.steps={STEPS}",
        "trainer.batch_size=4",
        f"trainer.evaluate_every={STEPS}",
        "trainer.workers=0",
        "trainer.checkpoint_every=5",
        "trainer.log_every=1",
        "trainer.diagnose_every=0",
        "trainer.precision=64-true",
        "model.encoder=vit_tiny_patch16_224",
        "model.decoder_channels=8",
        "model.image_size=[32,48]",
        "model.encoder_options={patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}",
        "data.options.size=[32,48]",
        "methods=[pcgrad]",
        "seeds=[0]",
        *more,
    ]


def spec_of(name: str, root: Path, *more: str) -> RunSpec:
    words = overrides(*more)
    return resolve(suites.load(name, words), Local(data=str(root)), words).members[0]


@pytest.mark.parametrize("name", IMAGE_SUITES)
def test_two_ranks_and_a_resumed_run_equal_one_process(name: str, copies: Path, tmp_path: Path, pool) -> None:  # type: ignore[no-untyped-def]
    spec = spec_of(name, copies / SUITES[name])
    straight = trained(spec, str(tmp_path / "one"))
    assert trained(spec, str(tmp_path / "broken"), stop_at=STOP) is None
    assert difference(straight, trained(spec, str(tmp_path / "broken"))) == 0
    two = pool.call(trained, spec, str(tmp_path / "two"), world=2)[0]
    assert difference(straight, two) <= TOLERANCE
    scores = [read_json(tmp_path / run / spec.run_id / "result.json")["scores"] for run in ("one", "two")]
    assert scores[0].keys() == set(spec.tasks)
    for task, found in scores[0].items():
        assert found == pytest.approx(scores[1][task], rel=1e-6, nan_ok=True), task


def test_a_file_that_vanishes_in_mid_epoch_costs_nothing(
    copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends with the file's name, and ends as if nothing had been once the file is back."""
    monkeypatch.setenv("MTLBENCH_CACHE", "off")
    root = Path(shutil.copytree(copies / "nyud", tmp_path / "nyud"))
    spec = spec_of("nyud", root)
    straight = trained(spec, str(tmp_path / "one"))
    assert trained(spec, str(tmp_path / "two"), stop_at=STOP) is None
    path = root / "NYUD_MT/depth/0003.npy"
    content = path.read_bytes()
    reading = Nyud.decode

    def vanishing(self: Nyud, image: str, tasks: object) -> object:
        path.unlink(missing_ok=True)
        return reading(self, image, tasks)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Nyud, "decode", vanishing)
        with pytest.raises(DataError, match=r"0003.npy: files must be complete.*the file is gone.*Unpack"):
            trained(spec, str(tmp_path / "two"))
    assert list((tmp_path / "two" / spec.run_id).glob("*.ckpt")), "the checkpoint is kept"
    path.write_bytes(content)
    assert difference(straight, trained(spec, str(tmp_path / "two"))) == 0


def test_workers_hand_the_error_on(copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLBENCH_CACHE", "off")
    root = Path(shutil.copytree(copies / "nyud", tmp_path / "nyud"))
    path = root / "NYUD_MT/images/0003.jpg"
    path.write_bytes(path.read_bytes()[:700])
    data = Nyud(str(root), size=[32, 48], batch_size=4, steps=2, workers=2)
    with pytest.raises(DataError, match=r"0003.jpg: files must be complete and readable"):
        list(data.train_dataloader())


# The first suite of each data set: others of it have encoders of 300 million parameters, which a check builds.
@pytest.mark.parametrize("name", {sample: name for name, sample in reversed(SUITES.items())}.values())
def test_a_sample_makes_a_whole_comparison(name: str, tmp_path: Path) -> None:
    """What ``make bench SUITE=<name> SAMPLE=1`` does, as a plan: nothing is missing, every run is named."""
    small = ["data.options.size=[32,48]", "model.image_size=[32,48]"] if name in IMAGE_SUITES else []
    answer = mtlbench(tmp_path, "bench", name, *small, "--sample", "--dry")
    assert answer.code == 0, answer.text
    assert "Traceback" not in answer.text and (tmp_path / "data/samples" / SUITES[name]).is_dir()
    told = mtlbench(tmp_path, "data", name, "--data", f"data/samples/{SUITES[name]}")
    assert told.code == 0 and " samples" in told.text, told.text


def test_a_run_on_a_broken_file_fails_and_is_retried(copies: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(copies / "nyuv2", tmp_path / "nyuv2"))
    path = root / "nyuv2/train/depth/3.npy"
    content = path.read_bytes()
    path.write_bytes(content[:200])
    words = ["bench", "nyuv2", *overrides("methods=[uniform]", "floor=false"), "--data", str(root), "--jobs", "1"]
    answer = mtlbench(tmp_path, *words)
    assert answer.code != 0 and "3.npy" in answer.text and "Traceback" not in answer.text, answer.text
    path.write_bytes(content)
    answer = mtlbench(tmp_path, *words, "--retry")
    assert answer.code == 0 and "uniform" in answer.text, answer.text
    folders = [RunFolder(p.parent, p.name) for p in (tmp_path / "results/nyuv2").glob("*-s0-*")]
    # The mended file is other data, by its size: the failed run stays as it is, a new one is done.
    assert sorted(folder.state() for folder in folders) == ["done", "failed"]

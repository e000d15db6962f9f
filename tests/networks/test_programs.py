"""Programs predict what their network predicts, for any number of images, or are refused and removed."""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from mtlbench.errors import MethodError
from mtlbench.networks import programs

SIZE = (4, 5)


class Sorts(nn.Module):
    """Sorts pixels with many ties and counts them, as the dispatch to experts does."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.1, 0.2, 0.3]))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        shades = image[:, 0].flatten().to(torch.int64) // 40
        ordered, order = shades.sort(stable=True)
        levels = torch.arange(7, device=image.device)
        ends = torch.searchsorted(ordered, levels, right=True)
        starts = torch.searchsorted(ordered, levels)
        mixed = (image.float() * self.scale[:, None, None]).mean((1, 2, 3))
        return {"order": order, "ends": ends, "starts": starts, "mean": mixed}


class Branches(nn.Module):
    """Depends on the values of its input."""

    def forward(self, image: Tensor) -> Tensor:
        return image.float() if image.float().mean() > 1 else -image.float()


class Counts(nn.Module):
    """Predicts something else in every call, so that no program can follow it."""

    calls = 0

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        return image.float() * self.calls


def test_a_program_needs_torch_alone_and_takes_any_number_of_images(tmp_path: Path) -> None:
    network = Sorts().eval()
    assert programs.write_program(network, SIZE, tmp_path / "a.pt2") == 0
    images = torch.randint(0, 256, (5, 3, *SIZE), dtype=torch.uint8)
    found = torch.export.load(tmp_path / "a.pt2").module()(images)
    assert all(torch.equal(found[name], value) for name, value in network(images).items())


def test_onnx_sorts_ties_as_torch_does(tmp_path: Path) -> None:
    network, path = Sorts().eval(), tmp_path / "a.onnx"
    names = ["order", "ends", "starts", "prediction.mean"]
    assert programs.write_onnx(network, SIZE, path, names) < 1e-6
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"], "weights are inside"
    images = torch.randint(0, 256, (5, 3, *SIZE), dtype=torch.uint8)
    found = onnxruntime.InferenceSession(str(path)).run(names, {"image": images.numpy()})
    wanted = network(images)
    for name, value in zip(("order", "ends", "starts"), found, strict=False):
        assert torch.equal(torch.as_tensor(value), wanted[name]), name
    assert torch.allclose(torch.as_tensor(found[3]), wanted["mean"])


def test_a_network_that_depends_on_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"torch.export of Branches raised .*--weights-only"):
        programs.write_program(Branches(), SIZE, tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


def test_a_program_that_predicts_something_else_is_removed(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"a.pt2 differs by 0\.\d+, so it was removed"):
        programs.write_program(Counts(), SIZE, tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("absent", ["onnx", "onnxscript", "onnxruntime"])
def test_without_a_package_the_message_says_how_to_install_it(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MethodError, match=rf"{absent} is not installed.*pip install 'mtlbench\[onnx\]'"):
        programs.needs_onnx()

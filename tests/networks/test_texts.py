"""Encoders of texts: the library's networks, padding, upcycled experts, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from torch import Tensor

from data_modules.texts.tokenizers import tokenizer_of
from mtlbench.errors import DataError, MethodError, SuiteError
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.networks import texts
from mtlbench.networks.experts.network import ExpertNetwork
from mtlbench.networks.families import family_of
from mtlbench.networks.family import Model
from mtlbench.tasks import Classification, Depth, Regression, Span, Task, TokenLabels
from mtlbench.tasks.inputs import padded
from mtlbench.training.build import build_method
from tests.support.hub_reader import readable_hub, use

TASKS: dict[str, Task] = {"topic": Classification("topic", classes=3), "stars": Regression("stars")}
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
OPTIONS = {
    "bert": BERT,
    "roberta": BERT,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    # Layer 0 attends to the whole text, layer 1 to the nearest two tokens.
    "modernbert": {**BERT, "local_attention": 4},
}
SIZES = {"vocabulary": 50, "length": 12}


def batch(*lengths: int, first: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return padded([{"tokens": torch.randint(first, 50, (n,), generator=generator)} for n in lengths])


def made(
    name: str, arguments: dict[str, Any] | None = None, kind: str = "bert", tasks: dict[str, Task] = TASKS, **model: Any
) -> MTLMethod:
    section = {"encoder": f"transformers:{kind}", "encoder_options": OPTIONS.get(kind, {}), "decoder_channels": 8}
    torch.manual_seed(0)
    given = {"inputs": SIZES, **section, **model}
    method = build_method({"path": name, "arguments": arguments or {}}, MethodSpec(tasks, given))
    method.configure_model()
    return method.eval()


def saved(folder: Path, kind: str = "bert", **changes: Any) -> Path:
    """Writes a pretrained encoder as its authors would."""
    torch.manual_seed(1)
    more = {"vocab_size": 50, "max_position_embeddings": 14, "pad_token_id": 0, **OPTIONS[kind], **changes}
    more |= {"pad_token_id": 1} if kind == "roberta" else {}
    transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **more)).save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", sorted(OPTIONS))
def test_an_encoder_computes_what_the_library_computes(kind: str, layers: int, tmp_path: Path) -> None:
    options = {**OPTIONS[kind], "max_position_embeddings": 14, texts.KINDS[kind].depth: layers}
    folder = saved(tmp_path, kind)
    model = Model(f"transformers:{kind}", options, str(folder), inputs={**SIZES, "length": 10})
    encoder = texts.build_encoder(model).eval()
    inputs = batch(7, 3, 10)
    fewer = {texts.KINDS[kind].depth: layers}
    reference = transformers.AutoModel.from_pretrained(str(folder), **fewer).eval()
    pad = getattr(reference.config, "pad_token_id", 0) or 0
    ids = torch.where(inputs["mask"], inputs["tokens"], pad)
    hidden = reference(input_ids=ids, attention_mask=inputs["mask"].long()).last_hidden_state
    wanted = torch.stack([one[:n].mean(0) for one, n in zip(hidden, (7, 3, 10), strict=True)])
    assert torch.allclose(encoder(inputs)[0], wanted, atol=1e-5)
    assert encoder.length == 14 - texts.KINDS[kind].offset


def test_an_encoder_by_its_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configuration, tokenizer and weights are those of the folder that its authors uploaded."""
    folder = saved(tmp_path / "local")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "fine": 7, "day": 8}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    identity = family_of("transformers:bert").weights_identity
    options = {**BERT, "max_position_embeddings": 14}
    with readable_hub({"models/me/small": files}) as server:
        use(monkeypatch, server.url, tmp_path / "cache")
        (found,) = tokenizer_of("me/small", 0).encode(["fine day"], None, 12)
        near, far = (
            texts.build_encoder(Model("transformers:bert", options, weights, inputs=SIZES)).eval()
            for weights in (str(folder), "me/small")
        )
        assert identity("bert", "me/small") == identity("bert", str(folder))
        assert tokenizer_of("me/small", 0).identity() == tokenizer_of(str(folder), 0).identity()
    assert found.tokens.tolist() == [7, 8] and torch.equal(near(batch(7, 3))[0], far(batch(7, 3))[0])
    assert texts.build_encoder(Model("transformers:bert", options, "me/small", inputs=SIZES)), "without the Hub"


def test_segments_reach_bert() -> None:
    encoder = texts.build_encoder(Model("transformers:bert", BERT, inputs=SIZES)).eval()
    inputs = batch(5, 8)
    pairs = {**inputs, "segments": (torch.arange(8) > 3).long().expand(2, 8)}
    assert not torch.allclose(encoder(inputs)[0], encoder(pairs)[0], atol=1e-4)
    assert torch.allclose(encoder(inputs)[0], encoder({**pairs, "segments": pairs["segments"] * 0})[0])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "bert") for name in ("uniform", "mmoe", "ple", "moe", "task_moe", "m3vit", "dense_conditioned")),
        *((name, "modernbert") for name in ("uniform", "task_moe")),
        *(("ase_lora_moe", kind) for kind in ("bert", "modernbert")),
    ],
)
def test_predictions_depend_on_no_padding_other_text_or_task(name: str, kind: str) -> None:
    method, inputs = made(name, kind=kind), batch(7, 3, 10)
    both = method(inputs)
    assert both["topic"].shape == (3, 3) and both["stars"].shape == (3, 1)
    alone = {key: value[1:2, :3] for key, value in inputs.items()}
    assert torch.allclose(method(alone, ["stars"])["stars"], both["stars"][1:2], atol=1e-5)
    assert not torch.allclose(method(batch(7, 3, 10, first=20))["stars"], both["stars"])


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("name", ["moe", "task_moe", "m3vit"])
def test_scaled_copies_start_as_the_dense_network_and_reach_their_routers(
    name: str, top_k: int, tmp_path: Path
) -> None:
    """Raw gates of 1 / E on copies scaled by E / k are the MLP, and their sum depends on the router."""
    weights = {"weights": str(saved(tmp_path)), "encoder_options": {**BERT, "max_position_embeddings": 14}}
    arguments = {"start": "scaled", "experts": 4, "top_k": top_k, "placement": "every"}
    inputs, dense, sparse = batch(7, 3, 10), made("uniform", **weights), made(name, arguments, **weights)
    for task in TASKS:
        assert torch.allclose(sparse(inputs)[task], dense(inputs)[task], atol=1e-5, rtol=0)
    network: Any = sparse.network
    torch.stack([value.square().sum() for value in sparse(inputs).values()]).sum().backward()
    for layer in network.layers.values():
        assert all(p.grad.abs().max() > 1e-6 for name, p in layer.router.named_parameters() if "embeddings" not in name)
        assert 0 < layer.experts.weight2.grad.abs().max()
    used = network(inputs, list(TASKS)).statistics["experts"]["block1.mlp"].load
    assert (used > 0).sum(1).min() > 1, "tokens choose different experts"


def test_scaled_copies_have_raw_gates() -> None:
    with pytest.raises(MethodError, match="start 'scaled' needs raw gates.*Found renormalise true"):
        made("moe", {"start": "scaled", "renormalise": True})


@pytest.mark.parametrize(
    ("name", "kind"), [("moe", "bert"), ("task_moe", "bert"), ("m3vit", "bert"), ("task_moe", "modernbert")]
)
def test_upcycled_experts_start_as_the_dense_network(name: str, kind: str, tmp_path: Path) -> None:
    """Copies of the MLP with two gates that sum to 1 are the MLP; the routers still get a gradient."""
    weights: dict[str, Any] = {"weights": str(saved(tmp_path, kind)), "kind": kind}
    weights |= {"encoder_options": {**OPTIONS[kind], "max_position_embeddings": 14}}
    inputs, dense = batch(7, 3, 10), made("uniform", **weights)
    sparse = made(name, {"start": "copy", "experts": 4, "top_k": 2, "placement": "every"}, **weights)
    for task in TASKS:
        assert torch.allclose(sparse(inputs)[task], dense(inputs)[task], atol=1e-5)
    network: Any = sparse.network
    # Equal experts whose gates sum to 1 give their router no gradient. One step on different tokens makes them differ.
    for step in range(2):
        sparse.zero_grad()
        torch.stack([value.square().sum() for value in sparse(inputs).values()]).sum().backward()
        largest = [float(p.grad.abs().max()) for router in network.routers for p in router.parameters()]
        assert all(value > 1e-6 for value in largest) if step else max(largest) < 1e-6
        torch.optim.SGD([p for layer in network.layers.values() for p in layer.experts.parameters()], 0.5).step()


def test_a_raw_gate_reaches_its_router_from_the_start(tmp_path: Path) -> None:
    method = made("moe", {"start": "copy", "experts": 4, "top_k": 1, "placement": "every"})
    network: Any = method.network
    assert not any(router.renormalise for router in network.routers)
    method(batch(7, 3))["topic"].square().sum().backward()
    assert all(router.token.weight.grad.abs().max() > 0 for router in network.routers)


def test_padding_counts_in_no_statistic() -> None:
    network: Any = made("task_moe", {"placement": "every"}).network
    inputs = batch(7, 3)
    more = {key: torch.nn.functional.pad(value, (0, 2)) for key, value in inputs.items()}
    few, many = (network(one, list(TASKS)).statistics["experts"] for one in (inputs, more))
    assert list(few) == ["block0.mlp", "block1.mlp"]
    for name in few:
        assert torch.equal(few[name].load, many[name].load)
        assert torch.allclose(few[name].probability, many[name].probability, atol=1e-6)
    assert torch.allclose(few["block0.mlp"].load.sum(1), torch.ones(2))


def test_tasks_together_and_one_by_one_are_equal() -> None:
    network: Any = made("task_moe").network
    assert isinstance(network, ExpertNetwork)
    together = network(batch(7, 3), list(TASKS)).predictions
    network.separate = True
    alone = network(batch(7, 3), list(TASKS)).predictions
    assert all(torch.allclose(together[task], alone[task], atol=1e-6) for task in TASKS)


def test_low_rank_experts_change_nothing_before_they_are_trained() -> None:
    inputs, method = batch(7, 3), made("ase_lora_moe")
    network: Any = method.network
    before = method(inputs)["stars"]
    for router in network.routers:
        for parameter in router.parameters():
            torch.nn.init.normal_(parameter)
    assert torch.allclose(method(inputs)["stars"], before, atol=1e-6)
    for layer in network.layers.values():
        torch.nn.init.normal_(layer.experts.up)
    assert not torch.allclose(method(inputs)["stars"], before, atol=1e-3)
    assert not any(p.requires_grad for layer in network.layers.values() for p in layer.experts.mlp.parameters())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"kind": "bret"}, "'bret'.*bert"),
        ({"encoder_options": {"hidden": 3}}, "option of the encoder transformers:bert 'hidden'.*hidden_size"),
        ({"encoder_options": {"hidden_size": 1.5}}, "hidden_size .* a whole number from 1. Found 1.5"),
        ({"encoder_options": {"hidden_dropout_prob": 1}}, "hidden_dropout_prob.*from 0 to below 1"),
        ({"encoder_options": {**BERT, "hidden_size": 15}}, "cannot be built.*15"),
        ({"inputs": None}, "vocabulary and the length.*input_sizes"),
        ({"encoder_options": {**BERT, "vocab_size": 20}}, "tokenizer must be the encoder's. It has 50.*knows 20"),
        ({"encoder_options": {**BERT, "max_position_embeddings": 8}}, "length is 12, and transformers:bert takes 8"),
        ({"kind": "minilm", "encoder_options": {"hidden_size": 8}}, "minilm has hidden_size 384. Found 8"),
        ({"kind": "minilm", "encoder_options": {"num_hidden_layers": 7}}, "num_hidden_layers 6 or fewer. Found 7"),
        ({"weights": "nowhere"}, "nowhere lacks model.safetensors, config.json"),
        ({"tasks": {"depth": Depth("depth")}}, "Dense tasks need images.*depth"),
    ],
)
def test_what_cannot_be_built(model: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        made("uniform", **model)


def test_weights_of_another_encoder(tmp_path: Path) -> None:
    weights = {"weights": str(saved(tmp_path / "a", hidden_size=32))}
    with pytest.raises(SuiteError, match="sizes of the encoder, or more.*encoder_options .*'hidden_size': 32"):
        made("uniform", **weights)
    with pytest.raises(SuiteError, match="weights of a distilbert. .* holds a bert"):
        made("uniform", kind="distilbert", **weights)
    identity = family_of("transformers:bert").weights_identity
    other = identity("bert", str(saved(tmp_path / "b", hidden_size=8)))
    assert identity("bert", weights["weights"]) != other and other.startswith("sha256:")


def test_experts_need_gelu_and_an_mlp_of_their_own() -> None:
    with pytest.raises(SuiteError, match="GELU. The encoder's activation is relu"):
        made("moe", encoder_options={**BERT, "hidden_act": "relu"})
    with pytest.raises((SuiteError, MethodError), match="0..1"):
        made("moe", {"placement": [5]})


def test_dropout_of_modernbert_is_that_of_its_hidden_units() -> None:
    method = made("uniform", kind="modernbert", encoder_options={**OPTIONS["modernbert"], "mlp_dropout": 0.5})
    block: Any = method.network.encoder.blocks[0]
    x = torch.randn(2, 5, 16)
    block.train()
    assert torch.equal(block.attend(x, torch.ones(2, 5).bool()), block.attend(x, torch.ones(2, 5).bool()))
    assert not torch.equal(block.transform(x), block.transform(x)) and block.mlp.dropout.p == 0.5


def test_modernbert_takes_no_longer_texts_than_its_weights(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="length is 40, and transformers:modernbert takes 14"):
        made("uniform", kind="modernbert", weights=str(saved(tmp_path, "modernbert")), inputs={**SIZES, "length": 40})


@pytest.mark.parametrize("name", ["uniform", "mmoe", "ldc_mtl"])
def test_one_vector_per_text_stands_for_its_tokens(name: str) -> None:
    """Rules that read features of whole samples get the same, whether or not there are tasks per token."""
    tags = {**TASKS, "tags": TokenLabels("tags", length=12, class_names=("O", "A"))}
    plain, tokenwise = (made(name, tasks=tasks) for tasks in (TASKS, tags))
    one, two = (
        m.network.sample_features(m.network(batch(7, 3), list(TASKS)).representation) for m in (plain, tokenwise)
    )
    assert one.shape == (2, 8) and torch.allclose(one, two, atol=1e-6)


def test_answers_are_chosen_from_the_second_text() -> None:
    method = made("uniform", tasks={"answer": Span("answer", length=12)})
    pairs = {**batch(8, 6), "segments": torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 0, 0]])}
    allowed = method(pairs)["answer"][:, 0] > -torch.inf
    assert torch.equal(allowed, pairs["mask"] & (pairs["segments"] == 1))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 4), "mapping with `tokens`.*Found Tensor"),
        ({"tokens": torch.zeros(2, 4).long()}, "Found tokens"),
        ({"tokens": torch.zeros(4).long(), "mask": torch.ones(4).bool()}, r"Found torch.int64 \(4,\)"),
        ({"tokens": torch.ones(1, 13).long(), "mask": torch.ones(1, 13).bool()}, "at most 12 tokens. Found 13"),
    ],
)
def test_texts_of_another_form(inputs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        made("uniform")(inputs)


def test_the_example_fits() -> None:
    model = Model("transformers:bert", BERT, inputs=SIZES)
    family = family_of(model.encoder)
    found = family.example(model, 2)
    family.check(found)
    assert found["tokens"].shape == (2, 12)

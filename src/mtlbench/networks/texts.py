"""The family `transformers`: text encoders, pretrained or randomly initialised, from the library of that name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.errors import DataError, SuiteError, shortened, unknown_name
from mtlbench.networks.blocks import per_task
from mtlbench.networks.decoder import TokenHead, VectorHead
from mtlbench.networks.family import Family, Model, Parts
from mtlbench.networks.text_encoder import (
    GatedMlp,
    PreNormBlock,
    RotaryAttention,
    TextAttention,
    TextBlock,
    TextEncoder,
    TextMlp,
    text_fault,
)
from mtlbench.networks.text_files import digest_of, folder_of
from mtlbench.networks.vectors import LinearBlock, VectorNeck
from mtlbench.tasks import Task
from mtlbench.tasks.inputs import TOKENS

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class Kind:
    """One kind of transformer.

    Attributes:
        type: The library's name of it.
        width, depth, hidden, activation: Names of these in its configuration; ``hidden``: units of an MLP.
        sizes: Names of everything that decides the shape of its weights.
        blocks: Returns the blocks of a model.
        segmented: Whether it has embeddings of segments.
        offset: Position embeddings besides those of tokens.
        fixed: Values of the configuration that this encoder always has.
        final: Name of a model's norm after the last block; ``""`` if it has none.
    """

    type: str
    width: str
    depth: str
    hidden: str
    activation: str
    sizes: tuple[str, ...]
    blocks: Callable[[Any, Any], list[TextBlock]]
    segmented: bool = False
    offset: int = 0
    fixed: Mapping[str, Any] | None = None
    final: str = ""


def _bert_blocks(model: Any, config: Any) -> list[TextBlock]:
    found = []
    for layer in model.encoder.layer:
        own, out = layer.attention.self, layer.attention.output
        share = config.attention_probs_dropout_prob
        attention = TextAttention(own.query, own.key, own.value, out.dense, config.num_attention_heads, share)
        mlp = TextMlp(layer.intermediate.dense, layer.intermediate.intermediate_act_fn, layer.output.dense)
        norms = out.LayerNorm, layer.output.LayerNorm
        found.append(TextBlock(attention, norms[0], mlp, norms[1], config.hidden_dropout_prob))
    return found


def _distilbert_blocks(model: Any, config: Any) -> list[TextBlock]:
    found = []
    for layer in model.transformer.layer:
        own, mlp = layer.attention, layer.ffn
        attention = TextAttention(
            own.q_lin, own.k_lin, own.v_lin, own.out_lin, config.n_heads, config.attention_dropout
        )
        two = TextMlp(mlp.lin1, mlp.activation, mlp.lin2)
        found.append(TextBlock(attention, layer.sa_layer_norm, two, layer.output_layer_norm, config.dropout))
    return found


def _modernbert_blocks(model: Any, config: Any) -> list[TextBlock]:
    found: list[TextBlock] = []
    for layer in model.layers:
        local = layer.attention_type == "sliding_attention"
        angles = partial(model.rotary_emb, layer_type=layer.attention_type)
        attention = RotaryAttention(layer.attn, angles, config.sliding_window if local else 0)
        mlp = GatedMlp(layer.mlp.Wi, layer.mlp.act, layer.mlp.Wo, config.mlp_dropout)
        found.append(PreNormBlock(attention, layer.attn_norm, mlp, layer.mlp_norm, 0.0))
    return found


_BERT = ("hidden_size", "num_hidden_layers", "intermediate_size", "hidden_act")
_BERT_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_SIZES = ("vocab_size", "max_position_embeddings")
KINDS: Mapping[str, Kind] = {
    "bert": Kind("bert", *_BERT, (*_BERT_SIZES, *_SIZES, "type_vocab_size"), _bert_blocks, segmented=True),
    "roberta": Kind("roberta", *_BERT, (*_BERT_SIZES, *_SIZES), _bert_blocks, offset=2),
    "distilbert": Kind(
        "distilbert",
        *("dim", "n_layers", "hidden_dim", "activation"),
        ("dim", "n_layers", "n_heads", "hidden_dim", *_SIZES),
        _distilbert_blocks,
    ),
    "modernbert": Kind(
        "modernbert",
        *("hidden_size", "num_hidden_layers", "intermediate_size", "hidden_activation"),
        (*_BERT_SIZES, "vocab_size"),
        _modernbert_blocks,
        final="final_norm",
    ),
    "minilm": Kind(
        "bert",
        *_BERT,
        (*_BERT_SIZES, *_SIZES, "type_vocab_size"),
        _bert_blocks,
        segmented=True,
        fixed={
            "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536,
            "vocab_size": 30522, "max_position_embeddings": 512,
        },
    ),
}  # fmt: skip
"""Encoders of the family. ``minilm`` has the sizes of all-MiniLM-L6-v2, which a package ships."""


class Texts(Family):
    """Texts and transformers."""

    name = "transformers"
    takes = TOKENS

    def check_encoder(self, name: str) -> None:
        """Checks a name against `KINDS`."""
        if name not in KINDS:
            raise SuiteError(unknown_name("encoder of the family transformers", name, KINDS))

    def check_options(self, name: str, options: Mapping[str, Any]) -> None:
        """Checks names and values of options against the library's configuration."""
        if name not in KINDS or not options:
            return
        kind = KINDS[name]
        known = {
            key: value
            for key, value in _library().AutoConfig.for_model(kind.type).to_dict().items()
            if isinstance(value, int | float | str)
            and key not in ("transformers_version", "model_type", "_name_or_path")
        }
        for key, value in options.items():
            if key not in known:
                raise SuiteError(unknown_name(f"option of the encoder transformers:{name}", str(key), known))
            _check_value(f"{key} of the encoder transformers:{name}", value, known[key], key)
            fixed = (kind.fixed or {}).get(key, value)
            if value != fixed and not (key == kind.depth and 1 <= value < fixed):
                fewer = " or fewer" if key == kind.depth else ""
                raise SuiteError(
                    f"transformers:{name} has {key} {fixed}{fewer}. Found {value!r}. Remove the option, or choose "
                    f"transformers:{kind.type}."
                )

    def weights_identity(self, name: str, weights: str | None) -> str:
        """Identifies weights by the hash of their file."""
        if weights is None:
            return "random"
        return f"sha256:{digest_of(folder_of(weights, WEIGHTS, CONFIG) / WEIGHTS)}"

    def widened(self, name: str, options: Mapping[str, Any], ratio: float) -> tuple[str, dict[str, Any]]:
        """Returns the encoder with MLPs of another width; one of fixed sizes becomes one of its kind."""
        self.check_encoder(name)
        kind = KINDS[name]
        given = {**(kind.fixed or {}), **options}
        width = given.get(kind.width) or getattr(_library().AutoConfig.for_model(kind.type), kind.width)
        return kind.type, {**given, kind.hidden: int(ratio * width)}

    def parts(self, tasks: Mapping[str, Task], model: Model) -> Parts:
        """Returns a transformer, a layer as neck, and one linear head per task, of the mean token or of every token."""
        self.check_encoder(model.name)
        self.check_options(model.name, model.options)
        if dense := [name for name, task in tasks.items() if task.dense]:
            raise SuiteError(
                f"Dense tasks need images, because they predict a value for every pixel. {', '.join(dense)} are dense, "
                f"and {model.encoder} takes texts. Leave these tasks out."
            )
        encoder = build_encoder(model, tokenwise=any(task.per_token for task in tasks.values()))
        neck, width = VectorNeck(encoder.channels[-1], model.decoder_channels), model.decoder_channels

        def head(name: str) -> nn.Module:
            return (TokenHead if tasks[name].per_token else VectorHead)(width, tasks[name].channels)

        return Parts(encoder, neck, per_task("head", tasks, head))

    def block(self, width: int) -> nn.Module:
        """Returns a `LinearBlock`."""
        return LinearBlock(width, width)

    def example(self, model: Model, count: int = 1) -> dict[str, Tensor]:
        """Returns texts (count, N) of the maximum length N."""
        shape = count, _sizes(model)["length"]
        return {"tokens": torch.ones(shape, dtype=torch.int64), "mask": torch.ones(shape, dtype=torch.bool)}

    def check(self, inputs: Any) -> None:
        """Checks that inputs are a batch of texts."""
        if fault := text_fault(inputs):
            raise DataError(fault)


def build_encoder(model: Model, *, tokenwise: bool = False) -> TextEncoder:
    """Builds an encoder from the section ``model`` of a run.

    Args:
        model: The section.
        tokenwise: Whether features contain those of every token.

    Raises:
        SuiteError: The library is absent, sizes do not fit together, or the weights are those of another encoder.
    """
    kind, sizes, library = KINDS[model.name], _sizes(model), _library()
    given = {**(kind.fixed or {}), **model.options}
    given.setdefault("vocab_size", sizes["vocabulary"])
    most = sizes["length"] + kind.offset
    if model.weights is not None and "max_position_embeddings" not in kind.sizes:
        most = _own_config(library, model).max_position_embeddings  # Its positions have no weights of their own.
    given.setdefault("max_position_embeddings", most)
    if sizes["vocabulary"] > given["vocab_size"]:
        raise SuiteError(
            f"The tokenizer must be the encoder's. It has {sizes['vocabulary']} numbers, and {model.encoder} knows "
            f"{given['vocab_size']}. Change data.options.tokenizer or the encoder."
        )
    if sizes["length"] > given["max_position_embeddings"] - kind.offset:
        raise SuiteError(
            f"Texts are at most as long as the encoder takes them. data.options.length is {sizes['length']}, and "
            f"{model.encoder} takes {given['max_position_embeddings'] - kind.offset} tokens. Lower it."
        )
    with _as_suite_error(f"{model.encoder} cannot be built"):
        if model.weights is None:
            config = library.AutoConfig.for_model(kind.type, **{"pad_token_id": 0, **given})
            built = library.AutoModel.from_config(config)
        else:
            config = library.AutoConfig.for_model(kind.type, **given)
            built = _pretrained(library, kind, config, model)
    return TextEncoder(
        built.embeddings,
        kind.blocks(built, built.config),
        vocabulary=config.vocab_size,
        length=config.max_position_embeddings - kind.offset,
        width=getattr(config, kind.width),
        activation=str(getattr(config, kind.activation)),
        segmented=kind.segmented,
        tokenwise=tokenwise,
        final=getattr(built, kind.final) if kind.final else None,
    )


def _pretrained(library: Any, kind: Kind, config: Any, model: Model) -> Any:
    """Returns a model with the weights of a folder, whose sizes must be those of the suite."""
    folder, own = folder_of(str(model.weights), WEIGHTS, CONFIG), _own_config(library, model)
    if own.model_type != kind.type:
        raise SuiteError(
            f"{model.encoder} needs weights of a {kind.type}. {folder} holds a {own.model_type}. Choose "
            f"transformers:{own.model_type}, or other weights."
        )
    other = {
        key: getattr(own, key)
        for key in kind.sizes
        if getattr(own, key) != getattr(config, key)
        and not (key == kind.depth and getattr(config, key) < getattr(own, key))
    }
    if other:
        raise SuiteError(
            f"Weights must have the sizes of the encoder, or more layers. Those of {folder} have other ones than "
            f"{model.encoder}. Use transformers:{kind.type} with encoder_options {other}."
        )
    kept = {key: value for key, value in model.options.items() if key == kind.depth or key not in kind.sizes}
    built, info = library.AutoModel.from_pretrained(
        str(folder), local_files_only=True, output_loading_info=True, **kept
    )
    # The pooler is not used: heads read the mean of the tokens.
    absent = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if absent:
        raise SuiteError(
            f"{folder} must hold all weights of {model.encoder}. It lacks {len(absent)} tensors, for example "
            f"{', '.join(absent[:3])}. Choose weights of this encoder."
        )
    return built.float()


def _own_config(library: Any, model: Model) -> Any:
    """Returns the configuration of pretrained weights."""
    folder = folder_of(str(model.weights), WEIGHTS, CONFIG)
    with _as_suite_error(f"{folder / CONFIG} cannot be read"):
        return library.AutoConfig.from_pretrained(str(folder), local_files_only=True)


def pretrained(folder: Path) -> Any:
    """Returns the library's own model of a folder, in float32 and in evaluation mode."""
    return _library().AutoModel.from_pretrained(str(folder), local_files_only=True).float().eval()


def _sizes(model: Model) -> Mapping[str, int]:
    sizes = model.inputs or {}
    if not {"vocabulary", "length"} <= set(sizes):
        raise SuiteError(
            f"{model.encoder} must know the vocabulary and the length of its texts. The data module gives neither: "
            "return them from input_sizes as {'vocabulary': v, 'length': n}."
        )
    return sizes


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise SuiteError(
            "Encoders of texts need the library transformers, which is not installed. Install it: "
            'pip install "mtlbench[text]"'
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _check_value(what: str, value: Any, default: Any, key: str) -> None:
    if isinstance(default, bool) or isinstance(default, str):
        fault = "" if type(value) is type(default) else f"a {type(default).__name__}"
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if "dropout" in key or key.endswith("_prob"):
            fault = "" if number and 0 <= value < 1 else "a number from 0 to below 1"
        elif isinstance(default, int):
            fault = "" if number and isinstance(value, int) and value >= 1 else "a whole number from 1"
        else:
            fault = "" if number and value > 0 else "a number above 0"
    if fault:
        raise SuiteError(f"{what} is {fault}. Found {value!r}. Correct it.")


@contextmanager
def _as_suite_error(what: str) -> Iterator[None]:
    # The library raises anything from ValueError to errors of the hub. Users get one kind of error.
    try:
        yield
    except SuiteError:
        raise
    except Exception as error:
        fact = shortened(f"{type(error).__name__}: {error}")
        raise SuiteError(f"{what}. The library transformers says: {fact}. Change model.encoder_options.") from error

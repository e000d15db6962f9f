"""Encoders: one interface to all timm networks that return feature maps, both CNNs and vision transformers."""

from __future__ import annotations

import copy
import difflib
import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import Format
from timm.models import PretrainedCfg, get_pretrained_cfg, load_state_dict
from torch import Tensor

from mtlbench.errors import DataError, SuiteError, unknown_name
from mtlbench.networks.family import InputEncoder
from mtlbench.networks.stem_vit import StemFeatures

MAPS = 4
"""Largest number of feature maps that an encoder returns."""

PRETRAINED = Path(__file__).parents[1] / "pretrained"
"""Folder of the weights that the package ships."""

SHIPPED = "mtlbench:"
"""How a suite's ``weights`` begins if the package ships them."""

RESERVED = (
    "features_only", "img_size", "in_chans", "num_classes", "out_indices", "pretrained",
    "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir",
)  # fmt: skip
"""Options of timm that the encoder sets itself; those of the second line would load weights outside the identity."""


class Encoder(InputEncoder):
    """Maps images to features at several scales (CNN) or at several depths on one scale (vision transformer).

    Every trainable parameter affects a map. Other parameters of the timm network are frozen, because DDP waits for the
    gradient of each trainable parameter.

    Attributes:
        trunk: The timm network that returns feature maps.
        channels: Channels of each map.
        strides: Pixels between neighbouring positions of each map, ascending.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: Any, image_size: tuple[int, int], built_from: Hashable = None) -> None:
        """Wraps a timm network.

        Args:
            trunk: As made by ``timm.create_model(..., features_only=True)``.
            image_size: Height and width in pixels, used to find the parameters that affect a map.
            built_from: What trunks of equal architecture have in common, so that only the first is traced; None traces.

        Raises:
            SuiteError: The patches do not tile the image.
        """
        super().__init__()
        self.trunk = trunk
        stem = isinstance(trunk, StemFeatures)
        self.strides: list[int] = trunk.strides if stem else list(trunk.feature_info.reduction())
        patch = self.strides[0]
        if len(set(self.strides)) == 1 and any(side % patch for side in image_size):
            # timm would silently drop the last pixels, and predictions would be stretched.
            near = [max(patch, round(side / patch) * patch) for side in image_size]
            raise SuiteError(
                f"image_size must be a multiple of the encoder's patch size, {patch}. Found {list(image_size)}. Use "
                f"{near}, for example."
            )
        # Swin and related networks return (B, H, W, C).
        self.channels_last = getattr(trunk, "output_fmt", Format.NCHW) == Format.NHWC
        key = (built_from, image_size, type(trunk), tuple((name, p.shape) for name, p in trunk.named_parameters()))
        traced = _TRACES.get(key) or _trace(trunk, image_size, self.channels_last)
        if built_from is not None:
            _TRACES[key] = traced
        channels, unused = traced
        self.channels = list(channels)
        for name in unused:
            trunk.get_parameter(name).requires_grad_(False)
        config = trunk.pretrained_cfg
        # Networks with position embeddings or windows of a fixed extent take no other size than the one they were built
        # for, unless `dynamic_img_size` lets them interpolate.
        embedding = getattr(getattr(trunk, "model", trunk), "patch_embed", None)
        fixed = config.get("fixed_input_size") and getattr(embedding, "strict_img_size", True)
        self.only_size = tuple(image_size) if fixed else None
        for name in ("mean", "std"):
            # Not persistent, because they are constants of the architecture and not weights.
            self.register_buffer(name, torch.tensor(config[name]).view(3, 1, 1), persistent=False)

    def normalise(self, inputs: Tensor) -> Tensor:
        """Scales an image to [0, 1] and standardises it as the pretrained weights expect.

        Args:
            inputs: (B, 3, H, W) uint8, RGB.

        Raises:
            DataError: The encoder does not take images of this size.
        """
        size = tuple(inputs.shape[-2:])
        if self.only_size is not None and size != self.only_size:
            raise DataError(
                f"This encoder takes images of one size, {self.only_size} (height, width): that of `model.image_size`. "
                f"Found {size}. Resize the images, as `mtlbench predict` does, or train with the size of the images."
            )
        return (inputs.to(self.mean.dtype) / 255 - self.mean) / self.std

    def embed(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns a vision transformer's tokens before its first block, and the maps so far: those of a stem, if any.

        Args:
            image: (B, 3, H, W) float, normalised.
        """
        if isinstance(self.trunk, StemFeatures):
            tokens, fine = self.trunk.embed(image)
            return tokens, [fine]
        model = self.trunk.model
        return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(image)))), []

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Returns feature maps, each (B, channels[i], ~H / strides[i], ~W / strides[i]).

        Args:
            inputs: (B, 3, H, W) float, normalised.
        """
        maps = self.trunk(inputs)
        return [m.permute(0, 3, 1, 2) for m in maps] if self.channels_last else list(maps)


def build_encoder(
    name: str, *, image_size: tuple[int, int], weights: str | None = None, options: Mapping[str, Any] | None = None
) -> Encoder:
    """Builds an encoder from a timm name.

    Args:
        name: timm's name, with or without a tag: ``"resnet18"``, ``"vit_tiny_patch16_224"``.
        image_size: Height and width in pixels; given to networks that need it (most transformers).
        weights: None (random), ``"timm"`` (pretrained, downloaded once), ``"mtlbench:<name>"`` (a file that this
            package ships, see `shipped`), or a path to a checkpoint in a format that timm reads for this network
            (.safetensors, .pth).
        options: Further keyword arguments of ``timm.create_model``, for example ``{"depth": 4}``.

    Raises:
        SuiteError: The name or an option is unknown, the network returns no feature maps or rejects the image size, or
            the weights are absent, cannot be downloaded or do not fit.
    """
    encoder_exists(name)
    arguments = dict(options or {})
    check_options(name, arguments)
    if _config(name).fixed_input_size:
        arguments["img_size"] = tuple(image_size)
    size = f"{image_size[0]} x {image_size[1]} pixels"
    with _as_suite_error(f"Encoder {name!r} cannot be built with {arguments}. Correct `encoder_options`"):
        arguments["out_indices"] = _map_indices(name, arguments)
        trunk = timm.create_model(name, features_only=True, **arguments) if weights is None else None
    if weights == "timm":
        hint = f"Pretrained weights of {name!r} cannot be downloaded or do not fit. Check the connection, or download "
        with _as_suite_error(f"{hint}them on another machine and set `weights` to the file's path"):
            trunk = timm.create_model(name, features_only=True, pretrained=True, **arguments)
    elif weights is not None:
        trunk = _from_file(name, _file(weights), arguments)
    with _as_suite_error(f"Encoder {name!r} does not take images of {size}. Choose another `image_size`"):
        return Encoder(trunk, image_size, built_from=_architecture(name, arguments))


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Checks for options that timm would silently ignore and options that the encoder sets itself.

    Raises:
        SuiteError: An option is reserved or has no value.
    """
    reserved = sorted(set(options) & set(RESERVED))
    if reserved:
        raise SuiteError(
            f"encoder_options of {name!r} must not hold options that mtlbench sets itself. Found "
            f"{', '.join(reserved)}. Remove them."
        )
    empty = [key for key, value in options.items() if value is None]
    if empty:
        hint = " YAML needs a space after the colon." if any(":" in str(key) for key in empty) else ""
        raise SuiteError(f"encoder_options of {name!r} must have values. {', '.join(map(repr, empty))} has none.{hint}")


def encoder_exists(name: str) -> None:
    """Checks that timm has the encoder.

    Args:
        name: timm's name, with or without a tag.

    Raises:
        SuiteError: timm does not know the name or tag. The message suggests close matches.
    """
    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        found, names = architecture, known
    else:
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
        if not tag or tag in tags:
            return
        found, names = name, [f"{architecture}.{t}" for t in tags]
    near = difflib.get_close_matches(found, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise SuiteError(f"Unknown encoder {name!r}.{hint} `timm.list_models()` lists all {len(known)} names.")


def weights_identity(name: str, weights: str | None) -> str:
    """Identifies an encoder's initial weights in a run's identity.

    Args:
        name: timm's name of the encoder.
        weights: As in `build_encoder`.

    Returns:
        ``"random"``, ``"timm:<tag>"``, or ``"sha256:"`` and the first 16 digits of the file's hash.

    Raises:
        SuiteError: The name is unknown, timm has no pretrained weights for it, or the file is absent.
    """
    if weights is None:
        return "random"
    if weights == "timm":
        encoder_exists(name)
        config = _config(name)
        if not config.has_weights:
            raise SuiteError(f"timm has no pretrained weights for {name!r}. Use `weights: null` or a local file.")
        return f"timm:{config.tag or 'default'}"
    with _file(weights).open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return f"sha256:{digest.hexdigest()[:16]}"


def _config(name: str) -> PretrainedCfg:
    return get_pretrained_cfg(name) or PretrainedCfg()


def _architecture(name: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
    """Returns what identifies a network apart from its weights, as a key."""
    return name, repr(sorted(arguments.items()))


def _map_indices(name: str, arguments: Mapping[str, Any]) -> list[int]:
    """Returns the indices of the maps to use: evenly spaced depths, or the last stages of stride 4 and above."""
    key = _architecture(name, arguments)
    if key in _INDICES:
        return list(_INDICES[key])
    # A network is built to read its table of maps, without changing the state of the generator. (The meta device would
    # need timm 1.0.24.)
    with torch.random.fork_rng(devices=[]):
        trunk: Any = timm.create_model(name, features_only=True, out_indices=1, **arguments)
    strides = [stage["reduction"] for stage in trunk.feature_info.info]
    if len(set(strides)) == 1:
        # The map of a stem comes before those of the blocks.
        count = min(MAPS - isinstance(trunk, StemFeatures), len(strides))
        found = [len(strides) * (i + 1) // count - 1 for i in range(count)]
    else:
        found = [i for i, stride in enumerate(strides) if stride >= 4][-MAPS:]
    _INDICES[key] = found
    return list(found)


_INDICES: dict[Hashable, list[int]] = {}
"""What `_map_indices` found, by architecture."""


_TRACES: dict[Hashable, tuple[list[int], list[str]]] = {}
"""What `_trace` found, by architecture: a study builds the same network many times, and a trace costs most of it."""


def _trace(trunk: Any, image_size: tuple[int, int], channels_last: bool) -> tuple[list[int], list[str]]:
    """Runs the network on the meta device, which yields shapes and a graph without arithmetic.

    Returns:
        Channels of each map, and the names of the trainable parameters that affect no map.
    """
    # A copy is used because some networks keep tensors of the last image, and `eval` because BatchNorm in training mode
    # rejects one small image.
    shadow = copy.deepcopy(trunk).to("meta").eval()
    trainable = {name: p for name, p in shadow.named_parameters() if p.requires_grad}
    with torch.enable_grad():  # The caller may build or load a network under `no_grad`.
        maps = shadow(torch.empty(1, 3, *image_size, device="meta"))
        total = torch.stack([m.sum() for m in maps]).sum()
        gradients = torch.autograd.grad(total, list(trainable.values()), allow_unused=True)
    unused = [name for name, gradient in zip(trainable, gradients, strict=True) if gradient is None]
    return [m.shape[-1 if channels_last else 1] for m in maps], unused


def _from_file(name: str, path: Path, arguments: Mapping[str, Any]) -> Any:
    """Builds the network with the weights of a local file and checks that the file holds all of them."""
    with _as_suite_error(f"{path} is not a checkpoint of tensors only. Save a state dict"):
        state = load_state_dict(str(path), weights_only=True)

    def build(seed: int) -> Any:
        with (
            torch.random.fork_rng(devices=[]),
            _as_suite_error(f"{path} does not fit encoder {name!r}. Use a checkpoint of it"),
        ):
            torch.manual_seed(seed)
            overlay = {"state_dict": dict(state), "custom_load": False}
            made: Any = timm.create_model(
                name, features_only=True, pretrained=True, pretrained_cfg_overlay=overlay, **arguments
            )
        made.pretrained_cfg.pop("state_dict", None)
        return made

    trunk, about = build(0), path.stat()
    file = (*_architecture(name, arguments), path.resolve(), about.st_size, about.st_mtime_ns)
    if file in _COMPLETE:
        return trunk
    # timm loads leniently and converts many formats, so names cannot be compared. Instead the network is built with
    # two seeds: a tensor that depends on the seed was not in the file.
    pairs = zip(trunk.named_parameters(), build(1).parameters(), strict=True)
    missing = [key for (key, a), b in pairs if not torch.equal(a, b)]
    if missing:
        raise SuiteError(
            f"{path} lacks {len(missing)} tensors of encoder {name!r}, for example {_few(missing)}. "
            f"It holds, for example, {_few(list(state))}. Use a checkpoint of this encoder."
        )
    _COMPLETE.add(file)
    return trunk


_COMPLETE: set[Hashable] = set()
"""Architectures and files that hold all their tensors, as `_from_file` found: a study builds the same network often."""


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3])


def shipped() -> dict[str, Path]:
    """Returns the pretrained weights that the package ships, by name; a suite names them as ``mtlbench:<name>``."""
    return {path.stem: path for path in sorted(PRETRAINED.glob("*.safetensors"))}


def _file(weights: str) -> Path:
    """Returns the file that a suite's ``weights`` names."""
    if weights.startswith(SHIPPED):
        name, found = weights.removeprefix(SHIPPED), shipped()
        if name not in found:
            raise SuiteError(unknown_name("pretrained encoder of mtlbench", name, found))
        return found[name]
    path = Path(weights)
    if not path.is_file():
        raise SuiteError(
            "`weights` must be null, 'timm', 'mtlbench:<name>' or the path of an existing file. "
            f"Found {str(path)!r}. mtlbench ships {', '.join(shipped())}."
        )
    return path


@contextmanager
def _as_suite_error(remedy: str) -> Iterator[None]:
    # timm, the hub and torch raise anything from AssertionError to HTTPError. Users get one kind of error.
    try:
        yield
    except SuiteError:
        raise
    except Exception as error:
        raise SuiteError(f"{remedy}. Found: {type(error).__name__}: {error}") from error

"""A model's config as facts: found in a folder, in the local hub cache or on the hub, and read family by family."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vllm_autofit.architecture import Attention, Layer, ModelFacts
from vllm_autofit.errors import ConfigError
from vllm_autofit.facts.families.attention import hidden_size
from vllm_autofit.facts.families.context import context_tokens, rotary_size
from vllm_autofit.facts.families.drafters import drafter
from vllm_autofit.facts.families.encoders import encoder_decoder, encoder_layers
from vllm_autofit.facts.families.fields import COMPLETE, Fields
from vllm_autofit.facts.families.parts import POOLS, Parts, take_apart
from vllm_autofit.facts.families.quantization import HF_QUANT_CONFIG, quantization
from vllm_autofit.facts.families.towers import encoder_tokens, towers
from vllm_autofit.units import MIB

LARGEST_FILE = 32 * MIB
"""Bytes of a config.json that are read. The largest published, with module lists for quantisation, are under 2 MiB."""
HUB_SECONDS = 5
"""Per request to the hub; a config is a few kilobytes."""
DTYPES = ("bfloat16", "float16", "float32", "float64")


def model_facts(config: Mapping[str, object]) -> ModelFacts:
    """What memory depends on, from a raw config.json or from the ``to_dict()`` of vLLM's or transformers' own object.

    Raises:
        ConfigError: the config is broken, or a size is missing that its config class doesn't fill in.
        UnknownModelError: it is sound, but of no family that we know.
    """
    if not isinstance(config, Mapping):
        raise ConfigError("config.json", f"not an object but a {type(config).__name__}", COMPLETE)
    parts = take_apart(config)
    text, family = parts.text, parts.family
    if isinstance(text.get("model"), str) and parts.architecture.startswith("Eagle"):
        raise ConfigError("model", "this is a drafter", "Name the model it drafts for")
    layers = family.layers(text, family)
    if not layers:
        raise ConfigError(f"{text.where}num_hidden_layers", "no layers", COMPLETE)
    if parts.architecture in BIDIRECTIONAL:
        layers = tuple(_as_encoder(layer) for layer in layers)
    built_towers, tower_notes = towers(parts)
    stored = quantization(parts.whole, text)
    notes = [*parts.notes, *tower_notes]
    if stored is not None and stored.weight_bits >= 16 and not stored.overrides:
        notes.append(f"the quantisation {stored.method!r} isn't understood: counted as not quantised")
    vocabulary = text.maybe("padded_vocab_size") or text.size("vocab_size", most=2**28)
    if text.assumed:
        notes.append(f"the config leaves out {', '.join(text.assumed)}: taken from the defaults of {parts.model_type}")
    return ModelFacts(
        architecture=parts.architecture,
        model_type=parts.model_type,
        hidden_size=hidden_size(text),
        vocabulary=vocabulary,
        layers=layers,
        encoder_layers=encoder_layers(text, family) if family.layers is encoder_decoder else (),
        context_tokens=context_tokens(text, parts.model_type),
        tied_embeddings=text.flag("tie_word_embeddings", True),
        learned_positions=_learned_positions(text, parts),
        rotary_size=_rotary_size(text, layers) if family.positions == "rotary" else 0,
        dtype=_dtype(parts),
        quantization=stored,
        towers=built_towers,
        drafter=drafter(parts, layers),
        runner=parts.runner,
        labels=_labels(text, parts.architecture),
        encoder_tokens=encoder_tokens(parts, built_towers),
        notes=tuple(notes),
        final_norms=family.final_norms,
        extra_parameters=family.extra(text, layers) if family.extra is not None else 0,
        raw=dict(text.given),
    )


BIDIRECTIONAL = ("LlamaBidirectionalModel", "LlamaBidirectionalForSequenceClassification")
"""Decoders that vLLM runs as encoders whatever their config says (``model_executor/models/config.py`` of 0.32)."""


def _as_encoder(layer: Layer) -> Layer:
    mixer = layer.mixer
    return replace(layer, mixer=replace(mixer, role="encoder")) if isinstance(mixer, Attention) else layer


def _learned_positions(text: Fields, parts: Parts) -> int:
    if parts.family.positions != "learned" or text.text("position_embedding_type") in ("rope", "rotary", "alibi"):
        return 0
    rows = text.size("max_target_positions", "max_position_embeddings", "n_positions")
    return rows + parts.family.position_offset


def _rotary_size(text: Fields, layers: tuple[Layer, ...]) -> int:
    if text.flag("alibi") or text.text("position_embedding_type") in ("nope", "alibi"):
        return 0
    mixer = next((layer.mixer for layer in layers if isinstance(layer.mixer, Attention)), None)
    if mixer is None:
        return 0
    return rotary_size(text, mixer.head_size, mixer.latent.rope_head_size if mixer.latent is not None else None)


def _dtype(parts: Parts) -> str:
    """Of what isn't quantised: the whole config's word, the text part's, or half precision, which vLLM chooses then."""
    for fields in (parts.whole, parts.text):
        said = fields.get("dtype", "torch_dtype")
        # A dtype of torch's own where the config is a live object's.
        name = said if isinstance(said, str) else repr(said) if type(said).__module__ == "torch" else ""
        if name.removeprefix("torch.") in DTYPES:
            return name.removeprefix("torch.")
    return "bfloat16"


def _labels(text: Fields, architecture: str) -> int:
    if not architecture.endswith(("Classification", "ForRewardModel")):
        return 0
    said = text.maybe("num_labels")
    names = text.get("id2label")
    return said or (len(names) if isinstance(names, Mapping) and names else 2)


def load_config(model: str, revision: str | None = None, *, hub: bool = True) -> dict[str, Any]:
    """The config of a model, as its file has it.

    Args:
        model: a folder, the path of a config.json, or a name on the hub.
        revision: branch, tag or commit of a hub name.
        hub: whether the network may be used for what the local hub cache lacks.

    Returns:
        The file's object. What ``hf_quant_config.json`` beside it says is under ``_hf_quant_config``;
        ``_sentence_transformers`` is true where ``modules.json`` makes it an embedding model.

    Raises:
        ConfigError: there is none, it can't be had, or it isn't a JSON object.
    """
    path, is_file = config_place(model, revision, hub=hub)
    if is_file:
        if path.suffix == ".gguf":
            raise ConfigError(
                str(path), "a GGUF file has no config.json", "Name a folder that holds the model's config"
            )
        return _with_neighbours(_read_file(path), path.parent)
    return _read_folder(path)


def config_place(model: str, revision: str | None = None, *, hub: bool = True) -> tuple[Path, bool]:
    """Where the config of a model is, fetched if need be, and whether that is a file rather than a folder.

    Raises:
        ConfigError: it can't be had.
    """
    path = Path(model).expanduser()
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # a name too long for the file system, or with a null byte
        raise ConfigError(repr(model[:80]), "neither a path nor a hub name", "Name a folder or a hub model") from None
    return (path if is_folder or is_file else _from_hub(model, revision, hub)), is_file


def _read_folder(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        found = "params.json" if (folder / "params.json").is_file() else "no config.json"
        remedy = "Add the config.json of the same model in Hugging Face's format"
        raise ConfigError(str(folder), f"only {found}" if found == "params.json" else found, remedy)
    return _with_neighbours(_read_file(file), folder)


def _with_neighbours(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    quantised = folder / "hf_quant_config.json"
    if config.get("quantization_config") is None and quantised.is_file():
        config[HF_QUANT_CONFIG] = _read_file(quantised)
    modules = folder / "modules.json"
    with suppress(OSError):
        if modules.is_file() and modules.stat().st_size < MIB and b"Pooling" in modules.read_bytes():
            config[POOLS] = True
    return config


def _read_file(file: Path) -> dict[str, Any]:
    try:
        size = file.stat().st_size
        if size > LARGEST_FILE:
            raise ConfigError(str(file), f"{size >> 20} MiB, more than any config", COMPLETE)
        loaded = json.loads(file.read_bytes())
    except OSError as error:
        raise ConfigError(str(file), error.strerror or str(error), "Make it readable for this user") from error
    except RecursionError:
        raise ConfigError(str(file), "nested too deeply", COMPLETE) from None
    except ValueError as error:  # not JSON, not UTF-8, or a number of more digits than Python converts
        raise ConfigError(str(file), f"not JSON ({str(error)[:80]})", COMPLETE) from None
    if not isinstance(loaded, dict):
        raise ConfigError(str(file), f"not a JSON object but a {type(loaded).__name__}", COMPLETE)
    return loaded


def _from_hub(model: str, revision: str | None, hub: bool) -> Path:
    """The folder of a hub model's config: in the local cache, else fetched there."""
    try:
        import huggingface_hub
        from huggingface_hub import constants
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        raise ConfigError(model, "no such folder, and huggingface_hub isn't installed", "Name a folder") from None
    place = constants.HF_HUB_CACHE
    try:
        cached = huggingface_hub.try_to_load_from_cache(model, "config.json", cache_dir=place, revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent
        if not hub or constants.HF_HUB_OFFLINE:
            raise ConfigError(model, "not in the local hub cache, and the hub isn't to be asked", _NAME_A_FOLDER)
        _reach(constants.ENDPOINT)
        fetched = huggingface_hub.hf_hub_download(
            model, "config.json", revision=revision, cache_dir=place, etag_timeout=HUB_SECONDS
        )
    except HFValidationError:
        raise ConfigError(repr(model[:80]), "neither a folder nor a hub name", "Check the spelling") from None
    except ConfigError:
        raise
    except Exception as error:  # the hub's library raises its own, its HTTP client's and the system's
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
        raise ConfigError(
            model, f"not in the local hub cache, and the hub gives none ({reason})", _NAME_A_FOLDER
        ) from error
    return Path(fetched).parent


_NAME_A_FOLDER = "Check the name and the network, log in for a gated model, or name a local folder"


def _reach(endpoint: str) -> None:
    """Fail at once where there is no way to the hub: its library would try for half a minute.

    A proxy knows ways that we don't, so with one nothing is tried.

    Raises:
        OSError: the host has no address, or doesn't answer.
    """
    from urllib.request import getproxies  # brings an HTTP client with it

    address = urlsplit(endpoint)
    if address.hostname is None or address.scheme in getproxies():
        return
    port = address.port or (80 if address.scheme == "http" else 443)
    socket.create_connection((address.hostname, port), timeout=HUB_SECONDS).close()

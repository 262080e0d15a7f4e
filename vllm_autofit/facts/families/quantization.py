"""How a checkpoint stores its linear layers: ``quantization_config``, or ModelOpt's ``hf_quant_config.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from vllm_autofit.architecture import Quantization
from vllm_autofit.facts.families.fields import Fields

HF_QUANT_CONFIG = "_hf_quant_config"
"""Where ``load_config`` puts what ``hf_quant_config.json`` says."""

IGNORED = ("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules", "llm_int8_skip_modules", "exclude")

NVFP4 = Quantization("modelopt_fp4", weight_bits=4, group_size=16, scale_bits=8)
MXFP4 = Quantization("mxfp4", weight_bits=4, group_size=32, scale_bits=8)
FP8 = Quantization("fp8", weight_bits=8, scale_bits=32)


def quantization(whole: Fields, text: Fields) -> Quantization | None:
    """The quantisation that a config names, None where weights are stored as they are.

    Raises:
        ConfigError: a figure in it is absurd.
    """
    said = (
        whole.part("quantization_config")
        or whole.part("compression_config")
        or text.part("quantization_config")
        or whole.part(HF_QUANT_CONFIG)
    )
    if said is None:
        return None
    method = _method(said)
    read = _READERS.get(method)
    return read(said, method) if read is not None else _by_bits(said, method)


def _method(said: Fields) -> str:
    """As vLLM normalises it: ``transformers_utils/model_arch_config_convertor.py`` of 0.32."""
    method = said.text("quant_method").lower().replace("compressed_tensors", "compressed-tensors")
    producer = said.part("producer")
    if producer is not None and producer.text("name") == "modelopt":
        return "modelopt"
    if not method and (said.part("quantization") is not None or said.says("quant_algo")):
        return "modelopt"
    return method


def _names(said: Fields, *names: str) -> tuple[str, ...]:
    """Module names or patterns; what isn't text in such a list is passed over, as vLLM never reads it."""
    value = said.get(*(names or IGNORED))
    return tuple(name for name in value if isinstance(name, str)) if isinstance(value, (list, tuple)) else ()


def _by_bits(said: Fields, method: str) -> Quantization:
    """Methods that name their bits and groups in the common way."""
    return Quantization(
        method=method or "unknown",
        weight_bits=said.number(16, "bits", "w_bit", "weight_bits"),
        group_size=_group_size(said),
        ignored=_names(said),
    )


def _group_size(said: Fields) -> int | None:
    """None where one scale serves a whole row; some write -1 for that."""
    value = said.get("group_size", "q_group_size")
    return None if value == -1 else said.maybe("group_size", "q_group_size")


def _awq(said: Fields, method: str) -> Quantization:
    return replace(_by_bits(said, method), zero_points=said.flag("zero_point", True))


def _gptq(said: Fields, method: str) -> Quantization:
    """Zero points are stored even where they are all the same; ``dynamic`` holds exceptions by pattern."""
    base = replace(_by_bits(said, method), zero_points=True)
    exceptions = said.part("dynamic")
    if exceptions is None:
        return base
    ignored = list(base.ignored)
    overrides = []
    for pattern in exceptions.given:
        name = f"re:{pattern.removeprefix('-:').removeprefix('+:')}"
        other = exceptions.part(pattern) if isinstance(exceptions.given[pattern], Mapping) else None
        if pattern.startswith("-:"):
            ignored.append(name)
        elif other is not None:
            bits = other.number(base.weight_bits, "bits")
            group = _group_size(other) if other.says("group_size") else base.group_size
            overrides.append(((name,), replace(base, weight_bits=bits, group_size=group, ignored=(), overrides=())))
    return replace(base, ignored=tuple(ignored), overrides=tuple(overrides))


def _auto_round(said: Fields, method: str) -> Quantization:
    """AutoRound: stored as GPTQ or AWQ, with exceptions by module."""
    base = replace(_by_bits(said, method), zero_points=True)
    exceptions = said.part("extra_config")
    if exceptions is None:
        return base
    kept = []
    for name in exceptions.given:
        other = exceptions.part(name) if isinstance(exceptions.given[name], Mapping) else None
        if other is not None and other.number(base.weight_bits, "bits") >= 16:
            kept.append(name)
    return replace(base, ignored=base.ignored + tuple(kept))


def _fp8(said: Fields, method: str) -> Quantization:
    block = said.items("weight_block_size", length=2)
    sizes = Fields({"rows": block[0], "columns": block[1]}, {}, f"{said.where}weight_block_size.") if block else None
    base = replace(
        FP8,
        method=method,
        block=(sizes.size("rows"), sizes.size("columns")) if sizes else None,
        ignored=_names(said),
    )
    groups = said.part("config_groups")  # DeepSeek V4's NVFP4 experts beside fp8 blocks
    return replace(base, overrides=_groups(groups, method)) if groups is not None else base


def _compressed_tensors(said: Fields, method: str) -> Quantization:
    groups = said.part("config_groups")
    overrides = _groups(groups, method) if groups is not None else ()
    common = next((one for targets, one in overrides if "Linear" in targets), None)
    base = common or Quantization(method, weight_bits=16)
    return replace(
        base,
        ignored=_names(said),
        overrides=tuple(one for one in overrides if "Linear" not in one[0]),
        kv_cache_dtype=_kv_cache_dtype(said),
    )


def _groups(groups: Fields, method: str) -> tuple[tuple[tuple[str, ...], Quantization], ...]:
    """Each group's targets, and how they are stored."""
    found = []
    for name in groups.given:
        group = groups.part(name) if isinstance(groups.given[name], Mapping) else None
        weights = group.part("weights") if group is not None else None
        if group is not None and weights is not None:
            found.append((_names(group, "targets") or ("Linear",), _scheme(weights, method)))
    return tuple(found)


def _scheme(weights: Fields, method: str) -> Quantization:
    bits = weights.number(8, "num_bits")
    group = -1 if weights.text("strategy") == "channel" else _group_size(weights)
    is_float = weights.text("type") == "float"
    block = weights.items("block_structure", length=2)
    sizes = Fields({"rows": block[0], "columns": block[1]}, {}, f"{weights.where}block_structure.") if block else None
    return Quantization(
        method=method,
        weight_bits=bits,
        group_size=group,
        scale_bits=8 if is_float and bits == 4 else 16,
        zero_points=not is_float and not weights.flag("symmetric", True),
        block=(sizes.size("rows"), sizes.size("columns")) if sizes else None,
    )


def _modelopt(said: Fields, method: str) -> Quantization:
    """ModelOpt, from its own file (``quantization`` inside) or from ``quantization_config``."""
    inner = said.part("quantization") or said
    base = _algorithm(inner.text("quant_algo"), inner)
    groups = inner.part("config_groups")
    layers = inner.part("quantized_layers")
    overrides: tuple[tuple[tuple[str, ...], Quantization], ...] = ()
    if base is None:
        overrides = _by_layer(layers) if layers is not None else ()
        overrides = overrides or (_groups(groups, method) if groups is not None else ())
        base = Quantization(method)
    return replace(base, ignored=_names(inner), overrides=overrides, kv_cache_dtype=_kv_cache_dtype(inner))


def _algorithm(name: str, said: Fields) -> Quantization | None:
    """What one of ModelOpt's algorithms stores; None for a mixture."""
    upper = name.upper()
    if upper in ("NVFP4", "W4A16_NVFP4", "NVFP4_AWQ", "W4A8_NVFP4_FP8"):
        return replace(NVFP4, group_size=_group_size(said) or 16)
    if upper in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN"):
        return replace(FP8, method="modelopt")
    if upper == "FP8_PB_WO":
        return replace(FP8, method="modelopt", block=(128, 128))
    if upper in ("MXFP8", "W8A8_MXFP8"):
        return Quantization("modelopt_mxfp8", weight_bits=8, group_size=32, scale_bits=8)
    if upper in ("W4A16_AWQ", "W4A8_AWQ"):
        return Quantization("modelopt", weight_bits=4, group_size=_group_size(said) or 128)
    return None


def _by_layer(layers: Fields) -> tuple[tuple[tuple[str, ...], Quantization], ...]:
    """Layers of a mixture, gathered by how they are stored."""
    gathered: dict[tuple[str, int | None], list[str]] = {}
    for name, layer in layers.given.items():
        algorithm, group = (layer.get("quant_algo"), layer.get("group_size")) if isinstance(layer, Mapping) else ("", 0)
        if isinstance(algorithm, str) and isinstance(group, int | None):
            gathered.setdefault((algorithm, group), []).append(name)
    stored = {key: _algorithm(key[0], Fields({"group_size": key[1]}, {}, layers.where)) for key in gathered}
    return tuple((tuple(names), one) for key, names in gathered.items() if (one := stored[key]) is not None)


def _kv_cache_dtype(said: Fields) -> str | None:
    """fp8 where the checkpoint asks for it: ModelOpt by name, compressed-tensors by a scheme of 8-bit floats."""
    named = said.get("kv_cache_quant_algo", "kv_cache_scheme")
    if isinstance(named, str):
        return "fp8" if named.upper() == "FP8" else None
    scheme = said.part("kv_cache_scheme") if isinstance(named, Mapping) else None
    if scheme is not None and scheme.text("type") == "float" and scheme.number(0, "num_bits") == 8:
        return "fp8"
    return None


def _mxfp4(said: Fields, method: str) -> Quantization:
    """gpt-oss: vLLM quantises the experts alone, whatever the list of exceptions says."""
    return replace(MXFP4, method=method, ignored=_names(said), experts_only=True)


def _bitsandbytes(said: Fields, method: str) -> Quantization:
    if said.flag("load_in_8bit", said.flag("_load_in_8bit")):
        return Quantization(method, weight_bits=8, scale_bits=32, ignored=_names(said))
    # One absolute maximum per 64 weights; with nested quantisation itself a byte.
    scale_bits = 8 if said.flag("bnb_4bit_use_double_quant") else 32
    return Quantization(method, weight_bits=4, group_size=64, scale_bits=scale_bits, ignored=_names(said))


def _quark(said: Fields, method: str) -> Quantization:
    """AMD Quark: one description for all layers; ``exclude`` lists exceptions."""
    common = said.part("global_quant_config")
    weight = common.part("weight") if common is not None else None
    kind = weight.text("dtype") if weight is not None else ""
    ignored = _names(said)
    if kind.startswith("fp8"):
        return replace(FP8, method=method, ignored=ignored)
    if kind == "fp4":
        return replace(MXFP4, method=method, ignored=ignored)
    bits = 4 if kind.endswith("int4") else 8 if kind.endswith("int8") else 16
    return Quantization(method, weight_bits=bits, group_size=_group_size(weight) if weight else None, ignored=ignored)


_READERS: dict[str, Callable[[Fields, str], Quantization]] = {
    "awq": _awq,
    "awq_marlin": _awq,
    "gptq": _gptq,
    "gptq_marlin": _gptq,
    "auto-round": _auto_round,
    "auto_round": _auto_round,
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "deepseek_v4_fp8": _fp8,
    "compressed-tensors": _compressed_tensors,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "modelopt_mixed": _modelopt,
    "mxfp4": _mxfp4,
    "gpt_oss_mxfp4": _mxfp4,
    "bitsandbytes": _bitsandbytes,
    "quark": _quark,
}

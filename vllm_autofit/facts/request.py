"""vLLM's ``EngineArgs`` -> ``Request``. Reads attributes only, so it needs no vLLM to be imported."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Iterable, Mapping
from types import CodeType, FunctionType
from typing import Any

from vllm_autofit import FIELDS
from vllm_autofit.facts import knobs as tables
from vllm_autofit.facts.variables import as_read, digest, memory_variables
from vllm_autofit.values import Request

KNOBS = (
    # the model as it is loaded
    "dtype", "quantization", "load_format", "hf_overrides", "runner", "convert", "model_impl",
    "cpu_offload_gb", "offload_group_size", "enable_lora", "max_loras", "max_lora_rank", "limit_mm_per_prompt",
    "language_model_only", "mm_encoder_tp_mode", "speculative_config", "enable_sleep_mode",
    # how it is spread
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "data_parallel_size_local",
    "prefill_context_parallel_size", "decode_context_parallel_size", "enable_expert_parallel", "enable_dbo",
    "distributed_executor_backend", "nnodes",
    # batches and the KV cache
    "max_num_batched_tokens", "block_size", "kv_cache_memory_bytes", "num_gpu_blocks_override",
    "enable_prefix_caching", "enable_chunked_prefill", "kv_offloading_size", "mamba_cache_dtype",
    "mamba_ssm_cache_dtype", "mamba_block_size", "mamba_cache_mode", "disable_hybrid_kv_cache_manager",
    # compilation and kernels
    "compilation_config", "cudagraph_capture_sizes", "max_cudagraph_capture_size", "optimization_level",
    "attention_backend", "performance_mode",
)  # fmt: skip
"""Knobs that planning and records read, changed or not (vLLM 0.32). Those that an older vLLM lacks are skipped."""

SPECULATION = {"spec_method": "method", "spec_model": "model", "spec_tokens": "num_speculative_tokens"}
"""Short forms of parts of ``speculative_config``, which vLLM (>= 0.24) puts there
(``EngineArgs.create_speculative_config``)."""


def read_request(
    engine_args: Any,
    set_by_user: Iterable[str],
    environ: Mapping[str, str],
    *,
    visible_devices: int | None = None,
    headless: bool = False,
    variables: Iterable[str] = (),
    version: tuple[int, int] | None = None,
    kind: str = "cuda",
) -> Request:
    """What one ``EngineArgs`` asks for.

    Args:
        engine_args: the instance; its five fields must be plain values by now.
        set_by_user: which of the five fields the user set.
        environ: the process's environment.
        visible_devices: how many devices this machine shows, when known: more ranks than that span nodes.
        headless: whether this node only serves engines to another one.
        variables: names of the environment variables that the installed vLLM reads, when known.
        version: of vLLM; None: every variable of any version counts.
        kind: of the devices that it will use.
    """
    if version is not None:
        environ = as_read(environ, version, kind)
    changed = _changed_knobs(engine_args)
    changed.update(memory_variables(environ, variables))
    unchanged = {
        name: _reduced(name, getattr(engine_args, name))
        for name in KNOBS
        if name not in changed and hasattr(engine_args, name)
    }
    ranks = local_ranks(engine_args, environ)
    in_parts = headless or _planned_in_parts(engine_args, environ)
    return Request(
        model=str(engine_args.model),
        values={name: getattr(engine_args, name) for name in FIELDS},
        set_by_user=frozenset(set_by_user),
        local_ranks=ranks,
        spans_nodes=in_parts
        or _some_engines_elsewhere(engine_args)
        or (visible_devices is not None and ranks > visible_devices),
        planned_in_parts=in_parts,
        utilization_left_to_vllm=_utilization_left_to_vllm(engine_args),
        kv_cache_fixed_by=_kv_cache_fixed_by(engine_args, environ),
        knobs={**unchanged, **changed},
        knobs_changed=frozenset(changed),
    )


def _changed_knobs(engine_args: Any) -> dict[str, Any]:
    """Every knob that differs from vLLM's default, whether a table names it or not, as it may be written down."""
    fields: Mapping[str, Any] = getattr(type(engine_args), "__dataclass_fields__", {})
    hidden = {*tables.OPAQUE, *tables.unknown_fields(type(engine_args))}
    changed = {}
    for name in dict.fromkeys((*KNOBS, *fields)):
        if tables.without_memory(name) or name in SPECULATION or not hasattr(engine_args, name):
            continue
        given, default = _given(engine_args, name), _default(fields.get(name))
        if given is default or _equal_number(given, default):
            continue
        value = _reduced(name, given)
        if value != _reduced(name, default):
            changed[name] = digest(json.dumps(value)) if name in hidden else value
    return changed


def _given(engine_args: Any, name: str) -> Any:
    """The value of a field, with what vLLM takes for the same written in the same way."""
    if name == "speculative_config":
        return speculation({part: getattr(engine_args, part, None) for part in (name, *SPECULATION)})
    value = getattr(engine_args, name)
    return None if name == "tokenizer" and value == engine_args.model else value


def _reduced(name: str, value: Any) -> Any:
    """As much of a value as memory depends on, plain."""
    if name in tables.ONLY_WHETHER_SET:
        return value is not None
    reduced = plain(value)
    if isinstance(reduced, dict):
        for part in tables.PARTS_WITHOUT_MEMORY.get(name, ()):
            reduced.pop(part, None)
    return reduced


def speculation(options: Mapping[str, Any]) -> Any:
    """``speculative_config`` with its short forms in it, as vLLM puts them there; None where neither is set."""
    whole = options.get("speculative_config")
    short = {key: value for name, key in SPECULATION.items() if (value := options.get(name)) is not None}
    if not isinstance(whole or {}, Mapping) or not (whole or short):
        return whole
    return {str(key).replace("-", "_"): value for key, value in (whole or {}).items()} | short


def _default(field: Any) -> Any:
    """vLLM's default of a field of a dataclass; None where there is no such field."""
    if field is None:
        return None
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _equal_number(value: Any, default: Any) -> bool:
    """Whether a number stands for a default that is a member of a numbered enumeration (``optimization_level=2``)."""
    return isinstance(value, int) and isinstance(default, int) and value == default


BALANCED_OUTSIDE = ("external", "hybrid", "multi_port_external")
"""``data_parallel_..._lb``: each node, or each engine, has API servers of its own (vLLM 0.32)."""


def _planned_in_parts(engine_args: Any, environ: Mapping[str, str]) -> bool:
    """Whether other processes build a config for their part of this launch: other nodes, or ranks started one by one.

    Ray's workers don't, wherever they are: they get this one's.
    """
    one_by_one = any(
        getattr(engine_args, name, None) is not None for name in ("data_parallel_rank", "data_parallel_start_rank")
    )
    balanced_outside = any(getattr(engine_args, f"data_parallel_{name}_lb", False) for name in BALANCED_OUTSIDE)
    by_ray = getattr(engine_args, "data_parallel_backend", "mp") == "ray"
    return (
        one_by_one
        or balanced_outside
        or (_some_engines_elsewhere(engine_args) and not by_ray)
        or _size(engine_args, "nnodes") > 1
        or _by_external_launcher(engine_args)
        or int(environ.get("VLLM_DP_SIZE") or 1) > 1
    )


def _some_engines_elsewhere(engine_args: Any) -> bool:
    local = getattr(engine_args, "data_parallel_size_local", None)
    return local is not None and int(local) != _size(engine_args, "data_parallel_size")


def _utilization_left_to_vllm(engine_args: Any) -> str | None:
    loading = getattr(engine_args, "model_loader_extra_config", None)
    copied = isinstance(loading, Mapping) and loading.get("mode") == "copy"  # then they are in the worker as well
    if getattr(engine_args, "load_format", None) == "ipc_cache" and not copied:
        return "another process holds the weights, and vLLM counts them into its share of the device"
    return None


def local_ranks(engine_args: Any, environ: Mapping[str, str]) -> int:
    """Worker processes that this launch starts on this machine; where Ray places them, or more than this machine has
    devices for, of the whole launch.

    Scripts that run one engine per data-parallel rank say so in ``VLLM_DP_SIZE``. Their ranks start together, and so do
    those of ``data_parallel_rank`` and of torchrun (``LOCAL_WORLD_SIZE``): none takes memory before all have planned,
    for they meet before that (vLLM 0.32: ``EngineCoreProc._init_data_parallel``, ``Worker.init_device``).
    """
    of_one_engine = (
        _size(engine_args, "tensor_parallel_size")
        * _size(engine_args, "pipeline_parallel_size")
        * _size(engine_args, "prefill_context_parallel_size")
    )
    if _by_external_launcher(engine_args) and environ.get("LOCAL_WORLD_SIZE"):
        return int(environ["LOCAL_WORLD_SIZE"])
    everywhere = max(_size(engine_args, "data_parallel_size"), int(environ.get("VLLM_DP_SIZE") or 1))
    nodes = _size(engine_args, "nnodes")
    if nodes > 1:  # vLLM spreads all ranks evenly (``EngineArgs.create_engine_config``), or refuses
        return max(1, of_one_engine * everywhere // nodes)
    local = getattr(engine_args, "data_parallel_size_local", None)
    return of_one_engine * (everywhere if local is None else max(1, int(local)))


def _by_external_launcher(engine_args: Any) -> bool:
    return getattr(engine_args, "distributed_executor_backend", None) == "external_launcher"


def _size(engine_args: Any, name: str) -> int:
    return int(getattr(engine_args, name, None) or 1)


def _kv_cache_fixed_by(engine_args: Any, environ: Mapping[str, str]) -> str | None:
    if environ.get("VLLM_CPU_KVCACHE_SPACE"):  # replaces what the field says (0.24 to 0.33, ``platforms/cpu.py``)
        return "VLLM_CPU_KVCACHE_SPACE"
    for name in ("kv_cache_memory_bytes", "num_gpu_blocks_override"):
        if getattr(engine_args, name, None) is not None:
            return name
    if environ.get("VLLM_ENABLE_STARTUP_PLAN", "0") not in ("", "0"):
        return "VLLM_ENABLE_STARTUP_PLAN"
    return None


def plain(value: Any) -> Any:
    """``value`` as JSON would hold it, the same in every process: no addresses, no set order, no objects."""
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, set | frozenset):
        return sorted(str(plain(item)) for item in value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init and getattr(value, field.name) is not None
        }
    return _object(value)


def _object(value: Any) -> str:
    """Name of a class, name and content of a function, what any other object says of itself unless it is an address."""
    if isinstance(value, FunctionType):
        return f"{_qualified(value)} {_code_digest(value.__code__)}"
    if isinstance(value, type):
        return _qualified(value)
    text = repr(value)
    return _qualified(type(value)) if " at 0x" in text else text


def _qualified(named: Any) -> str:
    return f"{named.__module__}.{named.__qualname__}"


def _code_digest(code: CodeType) -> str:
    """Changes with what a function does, not with where it stands. What it closes over doesn't count."""
    constants = [_code_digest(each) if isinstance(each, CodeType) else plain(each) for each in code.co_consts]
    return hashlib.sha256(f"{code.co_code!r} {code.co_names} {constants}".encode()).hexdigest()[:16]

"""Deployments that vLLM itself refuses at once, whatever memory there is. Pure.

Each rule names the file and function of vLLM 0.32 that raises, which is where it was read; where versions from 0.11 on
differ, the rule says so, and where they can't be told apart it stays silent. What depends on installed plugins, on the
attention backend or on files beside the config is not judged here, but for what a rule says itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from vllm_autofit.architecture import Attention, Dense, Experts, ModelFacts, Quantization
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.checkpoint_patterns import compiled


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


AWQ = _names("awq awq_marlin auto_awq")
GPTQ = _names("gptq gptq_marlin auto_gptq")
ONLINE = _names(
    "fp8_per_tensor fp8_per_block fp8_per_channel int8_per_channel_weight_only nvfp4_per_token mxfp8 online"
)
LEAST_CAPABILITY = {
    **dict.fromkeys(GPTQ | _names("inc auto-round"), 60),
    **dict.fromkeys(_names("compressed-tensors moe_wna16 quark"), 70),
    **dict.fromkeys(AWQ | ONLINE | _names("fp8 deepseek_v4_fp8 humming modelopt_fp4 modelopt_mixed torchao"), 75),
    **dict.fromkeys(_names("experts_int8 fbgemm_fp8 gpt_oss_mxfp4 modelopt modelopt_mxfp8 mxfp4"), 80),
    "fp_quant": 100,
}
"""``get_min_capability`` of each method's config in 0.32, ten times the major number plus the minor. Versions before
ask for as much or more."""

BFLOAT16_ONLY = _names("mxfp4 gpt_oss_mxfp4 modelopt_mxfp8 fp_quant")
FLOAT32_TOO = _names("compressed-tensors torchao")
"""``get_supported_act_dtypes`` of 0.32; all others in the table above run in either 16-bit format."""

GONE_SINCE = {"gguf": (0, 24), "bitsandbytes": (0, 28)}
"""The first version read whose ``QUANTIZATION_METHODS`` lacks them; plugins may bring them back."""

METHODS = frozenset({*LEAST_CAPABILITY, *GONE_SINCE}) | _names(
    "bitblas cpu_awq cpu_gptq deepspeedfp gptq_bitblas gptq_marlin_24 hqq ipex petit_nvfp4 ptpc_fp8 rtn tpu_int8"
)
"""``QUANTIZATION_METHODS`` (``layers/quantization/__init__.py``) of 18 versions from 0.11 to 0.33, together."""

CHECKPOINT_ONLY = AWQ | GPTQ | _names("moe_wna16 modelopt modelopt_fp4 modelopt_mxfp8 compressed-tensors")
"""Methods that can't quantise while loading: their config is read from the checkpoint."""

ACCEPTED = {
    "awq": AWQ | _names("moe_wna16 humming cpu_awq ipex inc"),
    "gptq": GPTQ | _names("moe_wna16 humming cpu_gptq gptq_bitblas gptq_marlin_24 bitblas ipex inc"),
    "fp8": _names("fp8 deepseek_v4_fp8 humming ptpc_fp8"),
    "compressed-tensors": _names("compressed-tensors humming"),
}
"""What may be asked for with a checkpoint of each method (``override_quantization_method`` of the configs). Of other
methods vLLM overrides what is asked, or it depends on more than the name."""

CACHE_DTYPES = _names(
    "auto float16 bfloat16 fp8 fp8_e4m3 fp8_e5m2 fp8_inc fp8_ds_mla nvfp4 nvfp4_4over6 nvfp4_ds_mla ultraquant_4bit "
    "int4_per_token_head int8_per_token_head fp8_per_token_head turboquant_k8v4 turboquant_4bit_nc turboquant_k3v4_nc "
    "turboquant_3bit_nc octave_k3v4 octave_k3v3 octave_k3v3_compact"
)
"""``CacheDType`` (``config/cache.py``) of 18 versions from 0.11 to 0.33, together."""

PREDICTS = (
    *("axk", "bailing", "deepseek", "dots3", "ernie", "exaone", "gemma4", "glm", "hy_v", "inkling", "kimi", "longcat"),
    *("mimo", "minimax", "nemotron", "pangu", "qwen3_5", "qwen3_next", "qwen4", "step3"),
)
"""How model types begin for which vLLM has prediction layers (``MTPModelTypes``); some configs don't count them."""

LAST_READ = (0, 33)
"""A later vLLM may know more names than the lists here."""

BLOCKS_REFINED_SINCE = (0, 29)
"""``refine_fp8_moe_block_shape``: smaller blocks of experts where the checkpoint's can't be divided; not in 0.28."""
LEAST_REFINED_BLOCK = 32
CONTEXT_PARALLEL_CHECKED_SINCE = (0, 19)
YARN_SCALED_UNTIL = (0, 32)
"""Before, YaRN's context was its factor times the original; 0.32 takes ``max_position_embeddings`` as it is."""

Rule = Callable[[ModelFacts, Deployment], "str | None"]


def refusals(facts: ModelFacts, deployment: Deployment, *, context_is_the_users: bool) -> tuple[str, ...]:
    """Why vLLM won't start this, one sentence each, without a full stop; empty where no rule is broken.

    Args:
        facts: the model.
        deployment: how it would be run.
        context_is_the_users: ``max_model_len`` was asked for; False too with ``VLLM_ALLOW_LONG_MAX_MODEL_LEN=1``.
    """
    rules = (*RULES, _context) if context_is_the_users else RULES
    return tuple(message for rule in rules if (message := rule(facts, deployment)) is not None)


def _heads(facts: ModelFacts, deployment: Deployment) -> str | None:
    """``ModelConfig.verify_with_parallel_config``; for heads that differ by layer ``QKVParallelLinear``."""
    ranks = deployment.tensor_parallel
    heads = next((each.heads for each in _attentions(facts) if each.heads % ranks), None)
    if heads is None:
        return None
    return (
        f"{heads} attention heads can't be divided among {ranks} ranks; vLLM expects tensor_parallel_size to divide "
        f"them: use {math.gcd(heads, ranks)}, or another divisor of {heads}"
    )


def _kv_heads(facts: ModelFacts, deployment: Deployment) -> str | None:
    """``layers/linear.py`` ``QKVParallelLinear``: KV heads are divided among ranks, or each copied to as many."""
    ranks = deployment.tensor_parallel
    plain = (each.kv_heads for each in _attentions(facts) if each.latent is None and not each.heads % ranks)
    heads = next((heads for heads in plain if heads % ranks and ranks % heads), None)
    if heads is None:
        return None
    return (
        f"{heads} KV heads can be neither divided among {ranks} ranks nor copied evenly; vLLM expects "
        f"tensor_parallel_size to divide them or to be a multiple of them: use {math.gcd(heads, ranks)}"
    )


def _widths(facts: ModelFacts, deployment: Deployment) -> str | None:
    """``RowParallelLinear`` (``divide``) and ``FusedMoEConfig.__post_init__``: inner widths are divided evenly."""
    for layer in facts.layers:
        ranks = _expert_ranks(deployment) if isinstance(layer.ffn, Experts) else deployment.tensor_parallel
        if layer.ffn is not None and layer.ffn.width % ranks:
            return (
                f"a feed-forward width of {layer.ffn.width} can't be divided among {ranks} ranks; vLLM expects their "
                f"number to divide it: use {math.gcd(layer.ffn.width, ranks)}"
            )
    return None


def _blocks(facts: ModelFacts, deployment: Deployment) -> str | None:
    """``fp8_utils.py`` ``validate_fp8_block_shape`` (rows of ``down_proj`` and ``o_proj``; merged columns may differ)
    and ``validate_fp8_block_shape_moe``."""
    stored = facts.quantization
    if stored is None or stored.block is None or stored.overrides or facts.model_type.startswith("deepseek_v4"):
        return None
    if stored.method not in ("fp8", "compressed-tensors"):
        return None
    for name, width, ranks in _divided(facts, deployment):
        part = width // ranks
        is_expert = ".experts." in name
        if compiled(stored.ignored).match(name) or _in_blocks(part, stored.block, ranks, is_expert):
            continue
        if is_expert and _is_refined(facts, stored, part, deployment):
            continue
        remedy = "use fewer, or --enable-expert-parallel" if is_expert else "use a smaller tensor_parallel_size"
        what = "an expert's width" if is_expert else f"the input of {name.rpartition('.')[2]}"
        return (
            f"{what} of {width} over {ranks} ranks is {part} each, and vLLM expects whole blocks of the checkpoint's "
            f"{stored.block[0]} x {stored.block[1]} fp8 scales: {remedy}"
        )
    return None


def _divided(facts: ModelFacts, deployment: Deployment) -> Iterator[tuple[str, int, int]]:
    """Matrices whose inputs are divided among ranks: a name as ``checkpoint_patterns`` takes it, width and ranks."""
    for index, layer in enumerate(facts.layers):
        if isinstance(layer.ffn, Experts):
            yield f"layers.{index}.mlp.experts.0.down_proj", layer.ffn.width, _expert_ranks(deployment)
        elif isinstance(layer.ffn, Dense):
            yield f"layers.{index}.mlp.down_proj", layer.ffn.width, deployment.tensor_parallel
        if isinstance(layer.mixer, Attention):
            width = layer.mixer.heads * layer.mixer.value_head_size
            yield f"layers.{index}.self_attn.o_proj", width, deployment.tensor_parallel


def _in_blocks(part: int, block: tuple[int, int], ranks: int, is_expert: bool) -> bool:
    rows, columns = block
    return (not is_expert or part % rows == 0) and (ranks == 1 or part % columns == 0)


def _is_refined(facts: ModelFacts, stored: Quantization, part: int, deployment: Deployment) -> bool:
    if stored.method != "fp8" or stored.block is None or deployment.vllm < BLOCKS_REFINED_SINCE:
        return False
    return math.gcd(*stored.block, part, facts.hidden_size) >= LEAST_REFINED_BLOCK


def _quantization_name(facts: ModelFacts, deployment: Deployment) -> str | None:
    """``ModelConfig._verify_quantization``: a name of no version, or one that this version has dropped."""
    asked = (deployment.quantization or "").lower()
    named = asked or (facts.quantization.method if facts.quantization is not None else "")
    if asked and asked not in METHODS and deployment.vllm <= LAST_READ:
        return f"quantization {asked!r} is no method of vLLM's: check the spelling, or leave it out"
    if named in GONE_SINCE and deployment.vllm >= GONE_SINCE[named]:
        major, minor = deployment.vllm
        return (
            f"vLLM {major}.{minor} has no quantisation {named!r} of its own: install a plugin that registers it, or "
            "choose another checkpoint or method"
        )
    return None


def _quantization_match(facts: ModelFacts, deployment: Deployment) -> str | None:
    """``ModelConfig._verify_quantization``, and ``get_quant_config`` (``model_loader/weight_utils.py``) for a method
    whose config the checkpoint must bring; a ``quantize_config.json`` of old checkpoints isn't known here."""
    asked, stored = (deployment.quantization or "").lower(), facts.quantization
    if asked not in METHODS or facts.model_type.startswith("deepseek_v4"):
        return None
    if stored is None and asked in CHECKPOINT_ONLY:
        return (
            f"quantization {asked!r} is read from a checkpoint, and this one's config names none: choose a checkpoint "
            "quantised that way, or a method that quantises while loading, such as fp8"
        )
    accepted = ACCEPTED.get(stored.method) if stored is not None else None
    if stored is None or accepted is None or asked in accepted:
        return None
    return f"quantization {asked!r} doesn't match the checkpoint's {stored.method!r}, which vLLM expects: leave it out"


def _method(facts: ModelFacts, deployment: Deployment) -> str | None:
    stored = facts.quantization
    if stored is None:
        return deployment.quantization.lower() if deployment.quantization else None
    return "modelopt_mixed" if stored.method == "modelopt" and stored.overrides else stored.method


def _quantization_device(facts: ModelFacts, deployment: Deployment) -> str | None:
    """``VllmConfig._get_quantization_config`` (``config/vllm.py``): first the device, then the dtype."""
    method = _method(facts, deployment)
    least = LEAST_CAPABILITY.get(method or "")
    if method is None or least is None:
        return None
    capability = deployment.compute_capability
    if deployment.device == "cuda" and capability is not None and capability[0] * 10 + capability[1] < least:
        return (
            f"a compute capability of {capability[0]}.{capability[1]} is too old for {method}, which vLLM runs from "
            f"{least // 10}.{least % 10} on: use a newer device or a checkpoint stored in another way"
        )
    fits = ("bfloat16",) if method in BFLOAT16_ONLY else ("bfloat16", "float16")
    if deployment.dtype not in ("float16", "float32") or deployment.dtype in fits:
        return None
    if method in FLOAT32_TOO:
        return None
    return (
        f"dtype {deployment.dtype} doesn't go with {method}, for which vLLM expects {' or '.join(fits)}: use {fits[0]}"
    )


def _bfloat16(_facts: ModelFacts, deployment: Deployment) -> str | None:
    """``platforms/cuda.py`` ``check_if_supports_dtype``."""
    capability = deployment.compute_capability
    if deployment.device != "cuda" or deployment.dtype != "bfloat16" or capability is None or capability >= (8, 0):
        return None
    return (
        f"dtype bfloat16 needs a compute capability of 8.0, and this device has {capability[0]}.{capability[1]}: use "
        "--dtype half"
    )


def _cache_dtype(_facts: ModelFacts, deployment: Deployment) -> str | None:
    """``CacheConfig.cache_dtype``, a closed list of names."""
    if deployment.kv_cache_dtype in CACHE_DTYPES or deployment.vllm > LAST_READ:
        return None
    return f"kv_cache_dtype {deployment.kv_cache_dtype!r} is none that vLLM knows: use auto, fp8 or bfloat16"


def _expert_parallel(facts: ModelFacts, deployment: Deployment) -> str | None:
    """``ModelConfig._verify_with_expert_parallelism``."""
    if not deployment.expert_parallel or any(isinstance(layer.ffn, Experts) for layer in facts.layers):
        return None
    return "expert parallelism is asked for, and vLLM expects a model with experts: leave --enable-expert-parallel out"


def _context_parallel(facts: ModelFacts, deployment: Deployment) -> str | None:
    """``ParallelConfig._validate_parallel_config`` and ``ModelConfig.verify_with_parallel_config``."""
    ranks, split = deployment.tensor_parallel, deployment.decode_context_parallel
    if split == 1 or deployment.vllm < CONTEXT_PARALLEL_CHECKED_SINCE:
        return None
    if deployment.prefill_context_parallel == 1 and ranks % split:
        return (
            f"decode_context_parallel_size {split} doesn't divide tensor_parallel_size {ranks}, as vLLM expects: use "
            f"{math.gcd(ranks, split)}"
        )
    heads = max((each.kv_heads for each in _attentions(facts) if each.latent is None), default=ranks)
    if heads and split > max(1, ranks // heads) and all(each.latent is None for each in _attentions(facts)):
        return (
            f"decode_context_parallel_size {split} is more than the {max(1, ranks // heads)} copies that {ranks} "
            f"ranks keep of {heads} KV heads, which is vLLM's limit: use fewer, or a larger tensor_parallel_size"
        )
    return None


def _speculation(facts: ModelFacts, deployment: Deployment) -> str | None:
    """``SpeculativeConfig`` (``config/speculative.py``): its fields and ``__post_init__``."""
    asked = deployment.speculation
    if asked is None:
        return None
    if asked.tokens < 1:
        return f"num_speculative_tokens is {asked.tokens}, and vLLM expects at least 1: raise it"
    if asked.method != "mtp" or asked.model is not None:
        return None
    if facts.drafter is None and not facts.model_type.startswith(PREDICTS) and deployment.vllm <= LAST_READ:
        return "speculative method mtp needs prediction layers, and this model has none: use ngram or a draft model"
    count = facts.drafter.layers if facts.drafter is not None and not facts.model_type.startswith("mimo") else 1
    if asked.tokens <= count or asked.tokens % count == 0:
        return None
    return (
        f"num_speculative_tokens {asked.tokens} isn't a multiple of the model's {count} prediction layers, as vLLM "
        f"expects above that number: use {asked.tokens // count * count}"
    )


def _batches(_facts: ModelFacts, deployment: Deployment) -> str | None:
    """``SchedulerConfig.verify_max_model_len``."""
    tokens, context, requests = deployment.max_num_batched_tokens, deployment.max_model_len, deployment.max_num_seqs
    if tokens < context and not deployment.chunked_prefill:
        return (
            f"max_num_batched_tokens {tokens} is less than max_model_len {context}, which vLLM expects to fit into one "
            "step without chunked prefill: raise the one, lower the other, or leave chunked prefill on"
        )
    if tokens < requests:
        return (
            f"max_num_batched_tokens {tokens} is less than max_num_seqs {requests}, and vLLM expects a token for each: "
            f"use --max-num-seqs {tokens} or raise the former"
        )
    return None


def _context(facts: ModelFacts, deployment: Deployment) -> str | None:
    """``_get_and_verify_max_len`` (``config/model.py``)."""
    longest = _longest(facts, deployment)
    if not facts.context_tokens or deployment.max_model_len <= longest:
        return None
    return (
        f"max_model_len {deployment.max_model_len} is more than the {longest} tokens of the model's config, vLLM's "
        f"limit: use {longest} or less, or set VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 at the risk of wrong output"
    )


def _longest(facts: ModelFacts, deployment: Deployment) -> int:
    """What the user may ask for: ``model_max_length`` counts too, and LongRoPE's default is shorter than its limit."""
    raw, allowed = facts.raw, [facts.context_tokens, _whole(facts.raw.get("model_max_length"))]
    if raw.get("original_max_position_embeddings"):
        allowed.append(_whole(raw.get("max_position_embeddings")))
    scaling = raw.get("rope_scaling") or raw.get("rope_parameters")
    if deployment.vllm < YARN_SCALED_UNTIL and isinstance(scaling, Mapping):
        original, factor = scaling.get("original_max_position_embeddings"), scaling.get("factor")
        allowed.append(int(_whole(original) * factor) if isinstance(factor, (int, float)) else 0)
    return max(allowed)


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _attentions(facts: ModelFacts) -> list[Attention]:
    return [layer.mixer for layer in facts.layers if isinstance(layer.mixer, Attention)]


def _expert_ranks(deployment: Deployment) -> int:
    """Ranks that share one expert's width: all of an engine's replicas too (``FusedMoEParallelConfig.make``)."""
    if deployment.expert_parallel:
        return 1
    return deployment.tensor_parallel * deployment.data_parallel * deployment.prefill_context_parallel


RULES: tuple[Rule, ...] = (
    _heads,
    _kv_heads,
    _widths,
    _blocks,
    _quantization_name,
    _quantization_match,
    _quantization_device,
    _bfloat16,
    _cache_dtype,
    _expert_parallel,
    _context_parallel,
    _speculation,
    _batches,
)

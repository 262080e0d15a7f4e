"""What would make a model fit that doesn't: each remedy with what it gains, the most useful first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from vllm_autofit.architecture import Attention, Layer, ModelFacts
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory import kv_cache
from vllm_autofit.memory.overhead import CUDA_COMMUNICATION_BYTES
from vllm_autofit.memory.sharding import padded
from vllm_autofit.planning.concessions import Wish, sequences
from vllm_autofit.planning.fit import LEAST_SPARE_BYTES, Fit, Room
from vllm_autofit.units import GIB, MIB
from vllm_autofit.values import DeviceFacts, Remedy

Weigh = Callable[[Deployment], Fit]

LARGEST_TENSOR_PARALLEL = 16

FP8_WEIGHTS_CAPABILITY = (8, 0)
"""From here on vLLM quantises 16-bit weights to fp8 while it loads (``quantization/fp8.py``: 8.0 in 0.11 and 0.13, 7.5
from 0.14 on)."""

SMALLEST_CONTEXT = 512
"""Shorter than this isn't worth suggesting."""


@dataclass(frozen=True)
class _Remedy:
    change: str
    flag: str | None
    gained: int
    """Per rank."""
    cures: bool


def remedies_for(
    weigh: Weigh, fit: Fit, wish: Wish, facts: ModelFacts, device: DeviceFacts, room: Room
) -> tuple[Remedy, ...]:
    """Remedies for a deployment that doesn't fit, or only just: first those that cure it alone, then by what they gain.

    Args:
        weigh: what another deployment would leave.
        fit: the deployment after every concession.
        wish: what must fit.
        facts: the model.
        device: the tightest device.
        room: what a rank may take of it.
    """
    asks_too_much = room.share_is_fixed and room.beside_bytes < 0
    found = [*_another_share(fit, wish, room)]
    if not asks_too_much or fit.shortfall(wish.least_context):
        others = [
            *_own_settings(weigh, fit, wish),
            *_others_memory(fit, wish, device),
            *_quantised_weights(weigh, fit, wish, facts),
            *_more_devices(weigh, fit, wish, facts, room),
            *_offload(fit, wish),
        ]
        # Whatever else is changed, vLLM's check at start still fails.
        found += [replace(remedy, cures=False) for remedy in others] if asks_too_much else others
    useful = [remedy for remedy in found if remedy.gained > 0]
    # Stable: among those that cure, the order above stands, from what costs least to what costs most.
    cures = [remedy for remedy in useful if remedy.cures]
    partial = sorted((remedy for remedy in useful if not remedy.cures), key=lambda remedy: -remedy.gained)
    return tuple(
        Remedy(
            change=remedy.change if remedy.cures else f"{remedy.change} (not enough by itself)",
            effect_bytes=remedy.gained * device.ranks,
            flag=remedy.flag,
        )
        for remedy in [*cures, *partial]
    )


def _compared(change: str, flag: str | None, new: Fit, old: Fit, wish: Wish) -> _Remedy:
    """Gains count in both currencies: room for the KV cache, and cache that the same tokens no longer need."""
    tokens = wish.least_context
    gained = new.kv_bytes - old.kv_bytes + old.needs(tokens) - new.needs(tokens)
    return _Remedy(change, flag, gained, cures=new.shortfall(tokens) == 0)


def _freed(change: str, flag: str | None, gained: int, fit: Fit, wish: Wish) -> _Remedy:
    return _Remedy(change, flag, gained, cures=gained >= fit.shortfall(wish.least_context))


def _smaller(change: str, flag: str | None, gained: int, fit: Fit, wish: Wish) -> _Remedy:
    """Less inside of what vLLM asks for: no help where something finds no room beside it."""
    remedy = _freed(change, flag, gained, fit, wish)
    return replace(remedy, cures=remedy.cures and not fit.missing_bytes)


def _another_share(fit: Fit, wish: Wish, room: Room) -> Iterator[_Remedy]:
    """What another utilisation, or another headroom, than the user's would give."""
    if not room.share_is_fixed:
        yield _freed("let it take more than VLLM_AUTOFIT_SHARE does", None, room.beyond_share_bytes, fit, wish)
        if room.headroom_is_fixed and room.headroom_bytes > LEAST_SPARE_BYTES:
            change = "keep less free than VLLM_AUTOFIT_HEADROOM asks for"
            yield _freed(change, None, room.headroom_bytes - LEAST_SPARE_BYTES, fit, wish)
        return
    beside = room.beside_bytes
    if beside < 0:
        enough = fit.kv_bytes + beside >= fit.needs(wish.least_context)
        yield _Remedy("ask for no more than is free: leave gpu_memory_utilization unset", None, -beside, enough)
    elif beside > room.headroom_bytes:
        change = "ask for all that is free: leave gpu_memory_utilization unset"
        yield _freed(change, None, beside - room.headroom_bytes, fit, wish)


def _own_settings(weigh: Weigh, fit: Fit, wish: Wish) -> Iterator[_Remedy]:
    """What the user fixed and could loosen."""
    now = fit.deployment
    if "context" not in wish.open and fit.demand.kv is not None:
        tokens = kv_cache.longest_context(fit.demand.kv, now, max(0, fit.sure_kv_bytes), wish.context)
        if SMALLEST_CONTEXT <= tokens < wish.context:
            gained = fit.needs(wish.context) - fit.needs(tokens)
            yield _Remedy(f"a context of {tokens:,} tokens", f"--max-model-len {tokens}", gained, cures=True)
    if "sequences" not in wish.open and now.max_num_seqs > 1:
        count = _sequences_that_fit(weigh, fit, wish)
        new = weigh(replace(now, max_num_seqs=count))
        yield _compared(f"{sequences(count)} at a time", f"--max-num-seqs {count}", new, fit, wish)
    if "fp8" not in wish.open and wish.fp8 is not None:
        new = weigh(replace(now, kv_cache_dtype=wish.fp8))
        yield _compared("KV cache in fp8", f"--kv-cache-dtype {wish.fp8}", new, fit, wish)
    if "eager" not in wish.open and not now.enforce_eager and now.device != "cpu":
        yield _compared("no CUDA graphs", "--enforce-eager", weigh(replace(now, enforce_eager=True)), fit, wish)
    if now.max_num_batched_tokens > 2048 and now.chunked_prefill:
        new = weigh(replace(now, max_num_batched_tokens=2048))
        yield _compared("batches of 2048 tokens", "--max-num-batched-tokens 2048", new, fit, wish)


def _sequences_that_fit(weigh: Weigh, fit: Fit, wish: Wish) -> int:
    count = fit.deployment.max_num_seqs
    while count > 1:
        count //= 2
        if weigh(replace(fit.deployment, max_num_seqs=count)).shortfall(wish.least_context) == 0:
            break
    return count


def _others_memory(fit: Fit, wish: Wish, device: DeviceFacts) -> Iterator[_Remedy]:
    held = device.total_bytes - device.free_bytes
    if held > 256 * MIB:
        change = f"close what holds {held / GIB:.2f} GiB of {device.name}"
        if device.claimed_bytes:
            change += ", or give each engine on it a part with VLLM_AUTOFIT_SHARE"
        yield _freed(change, None, held // device.ranks, fit, wish)


def _quantised_weights(weigh: Weigh, fit: Fit, wish: Wish, facts: ModelFacts) -> Iterator[_Remedy]:
    now, weights = fit.deployment, fit.demand.weights.bytes
    capability = now.compute_capability
    if facts.quantization is not None or now.quantization is not None:
        return
    if now.device == "cuda" and capability is not None and capability >= FP8_WEIGHTS_CAPABILITY:
        new = weigh(replace(now, quantization="fp8"))
        yield _compared("weights in fp8, quantised while loading", "--quantization fp8", new, fit, wish)
    # A 4-bit checkpoint keeps embeddings and scales as they are: some 30 % of the 16-bit bytes in published ones.
    yield _smaller("a 4-bit checkpoint of this model (AWQ, GPTQ or NVFP4)", None, round(weights * 0.7), fit, wish)


def _more_devices(weigh: Weigh, fit: Fit, wish: Wish, facts: ModelFacts, room: Room) -> Iterator[_Remedy]:
    """Tensor parallel sizes that cut heads and vocabulary evenly, up to the first that cures."""
    # Ranks that talk take more before vLLM looks, which a room for one rank doesn't know.
    talking = CUDA_COMMUNICATION_BYTES if fit.deployment.world == 1 else 0
    check_fails = room.share_is_fixed and room.beside_bytes < talking
    now = fit.deployment
    size = 2 * now.tensor_parallel
    while size <= LARGEST_TENSOR_PARALLEL and now.device != "cpu":
        if _divides(facts, size):
            new = weigh(replace(now, tensor_parallel=size))
            if check_fails or not room.share_is_fixed:
                new = replace(new, kv_bytes=new.kv_bytes - talking, missing_bytes=talking * check_fails)
            remedy = _compared(
                f"{size * now.pipeline_parallel} devices, each with its part of every layer",
                f"--tensor-parallel-size {size}",
                new,
                fit,
                wish,
            )
            yield remedy
            if remedy.cures:
                return
        size *= 2


def _divides(facts: ModelFacts, size: int) -> bool:
    return padded(facts.vocabulary) % size == 0 and all(_heads(layer) % size == 0 for layer in facts.layers)


def _heads(layer: Layer) -> int:
    """0 divides evenly: a layer without heads sets no limit."""
    return layer.mixer.heads if isinstance(layer.mixer, Attention) else 0


def _offload(fit: Fit, wish: Wish) -> Iterator[_Remedy]:
    """Weights in host memory: last, because every step then moves them over the bus."""
    missing = fit.shortfall(wish.least_context)
    whole = -(-(missing + fit.error_bytes) // GIB)
    if fit.deployment.device != "cpu" and 0 < whole * GIB < fit.demand.weights.bytes:
        yield _smaller(
            f"{whole} GiB of the weights in host memory (slow)", f"--cpu-offload-gb {whole}", whole * GIB, fit, wish
        )

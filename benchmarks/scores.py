"""Predicted against measured, quantity by quantity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.cases import Case
from benchmarks.measured import GIB
from vllm_autofit.memory import kv_cache
from vllm_autofit.memory.activations import compiling_bytes
from vllm_autofit.memory.cuda_graphs import graphs_come_off

GOALS = {
    "weights": 0.003,
    "activation": 0.08,
    "non-torch": 0.10,
    "KV pool, the other terms measured": 0.02,
    "KV pool, weights measured": 0.02,
    "KV pool, all estimated": 0.02,
    "concurrency, of the measured pool": 0.03,
    "concurrency, all estimated": 0.03,
}
"""Relative error, as the project wants it out of sample."""

KV_WORST = 0.05
"""The KV pool may never be predicted larger than measured by more than this."""

QUANTITIES = (
    "weights",
    "activation",
    "non-torch",
    "CUDA graphs",
    "all but the KV pool",
    "KV pool, the other terms measured",
    "KV pool, weights measured",
    "KV pool, all estimated",
    "tokens, of the measured pool",
    "tokens, all estimated",
    "concurrency, of the measured pool",
    "concurrency, all estimated",
)


GRAPHS_MEASURED_SINCE = (0, 18)
"""What torch's cache gives back at the first capture is kept out of what the graphs are said to take since 0.18, not in
0.17 (v1/worker/gpu_model_runner.py: capture_model empties the cache first). Before, it can even be negative."""

WEIGHTS_NOT_TOLD = {
    "m108": "it ran LoRA of a rank that isn't published",
    "m203": "its config names no layer that is kept in 8 bits",
}
"""Rows whose weights can't be told from what is published."""

FOUND = {
    "m163": "its vLLM was probably changed: the same repository runs vllm#40391 for another Gemma 4 model, which gives "
    "full-attention layers blocks of 32 tokens and pads them; 0.19 and 0.22 refuse such pages, 0.26 pads blocks of 16",
    "m164": "the config in the data is incomplete: with one global KV head it fits",
    "m202": "on ROCm vLLM printed what the device lost, not what torch allocated (platforms/rocm.py of 0.15: "
    "get_current_memory_usage; no longer in 0.26): blocks that torch keeps and the runtime's own memory are in it",
    "m242": "fits with prefix caching off",
    "m257": "0.23 GiB of its weights are unexplained: no version is published to read",
    "m258": "fits blocks of 64 tokens, as on XPU, and 8192 tokens in flight",
    "m259": "fits a context of 131072",
    "m294": "fits with prefix caching off",
    "m296": "the drafter's layers aren't in the config",
    "m297": "the drafter's layers aren't in the config",
    "m421": "the pool is the one of either device, the tokens follow from the smaller: 220 to 247 blocks fit them, "
    "1.3 to 1.5 GiB; its block size of 4176 tokens agrees",
    "m422": "the config in the data lacks its rope scaling: with it 58.22",
    "m425": "ROCm, whose libraries' own memory isn't modelled: 0.6 GiB of it follow if utilisation was 0.9",
    "m432": "quantised while loading; that the allocator uses blocks again isn't modelled",
    "m436": "an NPU, with another allocator",
}
"""What looking into a row that misses a goal brought to light."""


@dataclass(frozen=True)
class Score:
    """One figure of one start."""

    case: Case
    quantity: str
    predicted: float
    measured: float
    rounding: float
    """Half of the last printed digit."""
    guesses: tuple[str, ...] = ()
    """What the prediction had to take as vLLM's default because the row doesn't say."""

    @property
    def error(self) -> float:
        """Relative, signed, beyond what the printed figure is rounded by."""
        off = self.predicted - self.measured
        beyond = max(0.0, abs(off) - self.rounding)
        return beyond / abs(self.measured) * (1 if off > 0 else -1) if self.measured else 0.0

    @property
    def guessed(self) -> bool:
        """Whether a setting that matters here isn't published."""
        return bool(self.guesses)

    @property
    def missed(self) -> bool:
        """Whether it is farther off than the goal."""
        return abs(self.error) > GOALS[self.quantity]

    @property
    def over_promises(self) -> bool:
        """A KV pool that is predicted much larger than it was, although every setting is known."""
        return self.quantity.startswith("KV pool") and not self.guessed and self.error > KV_WORST

    @property
    def reason(self) -> str:
        """Why it may be off, from the row itself."""
        raw = self.case.row.raw
        known = [FOUND[self.case.row.id]] if self.case.row.id in FOUND else []
        known += [f"not published: {', '.join(self.guesses)}"] if self.guesses else []
        if self.case.config_lacks_quantization:
            known.append("the config is that of the unquantised original")
        if not {"max_num_batched_tokens", "max_num_seqs"} & raw.keys() and self.quantity != "weights":
            known.append("batch settings not published, a server's defaults taken")
        if note := raw.get("flags"):
            known.append(str(note))
        return "; ".join(known) or "not known"


def scores_of(case: Case) -> Iterator[Score]:
    """Every figure that the row has and that the estimator predicts."""
    row, demand = case.row, case.demand
    weights = row.gib("weights_gib")
    told = row.id not in WEIGHTS_NOT_TOLD and not case.config_lacks_quantization
    if weights is not None and told and not case.deployment.cpu_offload_bytes:
        yield Score(case, "weights", demand.weights.bytes / GIB, weights, 0.005)
    version = () if row.version else ("vLLM version",)
    activation, non_torch, graphs = row.gib("activation_peak_gib"), row.gib("non_torch_gib"), row.gib("cudagraph_gib")
    if activation is not None:
        yield Score(case, "activation", demand.activations.bytes / GIB, activation, 0.005, version)
    if non_torch is not None and non_torch >= 0:
        yield Score(case, "non-torch", demand.non_torch.bytes / GIB, non_torch, 0.005, version)
    if graphs is not None and graphs > 0:
        mixed = row.version is not None and row.version < GRAPHS_MEASURED_SINCE
        gaps = ("what torch gave back meanwhile",) if mixed else version
        yield Score(case, "CUDA graphs", demand.cuda_graphs.bytes / GIB, graphs, 0.005, gaps)
    sleeps = "sleep mode" in str(row.raw.get("flags", ""))  # its allocator hides what torch holds from vLLM's sum
    if demand.kv is not None and not sleeps:
        yield from _kv_scores(case)


def _kv_scores(case: Case) -> Iterator[Score]:
    row, layout = case.row, case.demand.kv
    assert layout is not None
    pool = row.gib("kv_cache_gib")
    asked = row.asked_bytes
    measured_terms = [row.gib(name) for name in ("weights_gib", "activation_peak_gib", "non_torch_gib")]
    if pool is not None and pool > 0 and asked is not None and None not in measured_terms:
        rest = asked / GIB - sum(term for term in measured_terms if term is not None)
        if row.version is not None and graphs_come_off(case.facts, case.deployment):
            rest -= row.gib("cudagraph_gib") or 0.0
        gaps = tuple(gap for gap in row.gaps if gap in ("utilisation", "the device's exact size"))
        yield Score(case, "KV pool, the other terms measured", rest, pool, 0.02, gaps)
    estimated = None if case.config_lacks_quantization else estimated_pool_bytes(case)
    if pool is not None and estimated is not None and asked is not None:
        taken, measured = (asked - estimated) / GIB, asked / GIB - pool
        yield Score(case, "all but the KV pool", taken, measured, 0.005, row.gaps)
    given = estimated_pool_bytes(case, weights_measured=True)
    for source, size in (("weights measured", given), ("all estimated", estimated)):
        if pool is not None and pool > 0 and size is not None:
            yield Score(case, f"KV pool, {source}", size / GIB, pool, 0.01, row.gaps)
    printed_bytes = None if pool is None else round(pool * GIB)
    cut = row.pool_gaps(case.deployment, len(layout.groups))
    for source, size, gaps in (("of the measured pool", printed_bytes, cut), ("all estimated", estimated, row.gaps)):
        if size is None or size <= 0:
            continue
        count = kv_cache.blocks(layout, size)
        rounding = 0.005 * GIB / size if size == printed_bytes else 0.0
        if (printed := row.gib("kv_cache_tokens")) is not None:
            predicted = kv_cache.tokens(layout, case.deployment, count)
            yield Score(case, f"tokens, {source}", predicted, printed, rounding * printed, gaps)
        if (printed := row.gib("max_concurrency")) is not None:
            predicted_concurrency = kv_cache.max_concurrency(layout, case.deployment, count)
            allowed = rounding * printed + 0.005
            yield Score(case, f"concurrency, {source}", predicted_concurrency, printed, allowed, gaps)


def estimated_pool_bytes(case: Case, *, weights_measured: bool = False) -> int | None:
    """What would be left for the KV cache; None where a figure that it needs isn't known. May be negative."""
    asked, demand = case.row.asked_bytes, case.demand
    printed = case.row.gib("weights_gib")
    if asked is None or (weights_measured and printed is None):
        return None
    weights = round(printed * GIB) if weights_measured and printed is not None else demand.weights.bytes
    pool = asked - weights - demand.activations.bytes - demand.non_torch.bytes
    if graphs_come_off(case.facts, case.deployment):
        pool -= demand.cuda_graphs.bytes
    return pool - (compiling_bytes(case.facts, case.deployment) if case.row.is_cold else 0)

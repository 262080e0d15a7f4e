"""The plain data that flows along the line: request and devices in, plan out. No behaviour.

Units are bytes and tokens. Everything is frozen: a room returns new data, it never edits what it was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vllm_autofit.architecture import ModelFacts, Tensor

AUTO_CONTEXT = -1
"""``max_model_len`` value with which vLLM >= 0.14 fits the context to its KV cache (CLI: ``auto``)."""

Source = Literal["user", "record", "prior", "estimate", "vllm"]
"""Who decided a value: the user, a measured start, one of another version or device, our arithmetic, or vLLM's own
default."""

FieldValue = float | int | bool | str | None


@dataclass(frozen=True)
class Request:
    """What the user asked for, and which of the five fields they set themselves."""

    model: str
    values: dict[str, FieldValue]
    """The five fields, as they stand."""
    set_by_user: frozenset[str]
    """Names of those that the user set, in whatever way. Ours to fill is the rest."""
    local_ranks: int = 1
    """Worker processes on this machine: tensor x pipeline x local data parallel."""
    spans_nodes: bool = False
    """More than what can be seen from here takes part."""
    planned_in_parts: bool = False
    """Other processes plan their part of it by themselves, so a value that must agree everywhere can't be chosen."""
    kv_cache_fixed_by: str | None = None
    """The setting that fixes the KV cache size, if any (``kv_cache_memory_bytes`` and its like)."""
    utilization_left_to_vllm: str | None = None
    """Why no utilisation can be chosen for this launch, if so."""
    knobs: dict[str, object] = field(default_factory=dict)
    """Every other setting that memory depends on, by its vLLM name, as plain JSON values."""
    knobs_changed: frozenset[str] = frozenset()
    """Those of them that differ from vLLM's default."""


@dataclass(frozen=True)
class DeviceFacts:
    """The memory of one device at one moment, before vLLM takes any."""

    kind: Literal["cuda", "cpu"]
    index: int
    name: str
    total_bytes: int
    free_bytes: int
    ranks: int = 1
    """Worker processes that will share the device."""
    size_is_fixed: bool = True
    """False where the total moves between starts (host memory of a virtual machine)."""
    compute_capability: tuple[int, int] | None = None
    """CUDA's, None where it isn't known."""
    shares_host: bool = False
    """An integrated device: its memory is the host's, and the operating system needs some of it."""
    cpu_features: tuple[str, ...] = ()
    """Of a host: those flags of its processor that change vLLM's KV cache."""
    memory_nodes: int = 1
    """NUMA nodes that the memory is on."""
    uuid: str = field(default="", compare=False)
    """Which device it is, as the driver names it; empty for a host, and where the driver doesn't say."""
    claimed_bytes: int = 0
    """Of what is free: what other engines of the same user have a claim on and haven't taken yet."""

    @property
    def memory_kind(self) -> Literal["cuda", "cpu", "unified"]:
        """What decides how much of it is taken and kept free: ``kind``, or ``unified`` where it is the host's."""
        return "unified" if self.shares_host else self.kind


@dataclass(frozen=True)
class Model:
    """What could be read about a model before anything is loaded."""

    name: str
    facts: ModelFacts | None = None
    """None where the config isn't understood; then nothing is estimated."""
    tensors: tuple[Tensor, ...] = ()
    weights_source: str = ""
    """Where the tensors' sizes come from: headers in a folder, in the local hub cache or on the hub, or the config."""
    exact: bool = False
    """Whether the sizes are those of the checkpoint itself."""
    draft: Model | None = None
    """The checkpoint that drafts in speculative decoding, where it has its own."""
    notes: tuple[str, ...] = ()
    """What the user should know about how it was read."""


@dataclass(frozen=True)
class RunSettings:
    """Of the settings that we may choose, those that decide what a start takes; as vLLM had them in force."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_dtype: str
    enforce_eager: bool


@dataclass(frozen=True)
class Measured:
    """A figure that a start measured."""

    bytes: int
    record_id: str
    source: Source = "record"
    """``prior``: from another key, so it holds with a wider margin."""
    settings: RunSettings | None = None
    """What it was measured with; None where it doesn't depend on them."""


@dataclass(frozen=True)
class Elsewhere:
    """The tightest device of another node, as its workers saw it: it can't be read from here."""

    free_bytes: int
    """When they compared vLLM's share with it: what a start takes before that was taken."""
    total_bytes: int
    ranks: int
    """Workers that share it."""
    record_id: str


@dataclass(frozen=True)
class Lessons:
    """What past starts taught. Bytes of one device, unless a rank's."""

    startup_overhead: Measured | None = None
    """What a start took from the device before vLLM's check, beside what vLLM then asked for."""
    headroom: Measured | None = None
    """What has to stay free beside that, margin included, as seen under load."""
    least_headroom: Measured | None = None
    """A start that kept less than this free ran out."""
    proven_asked: Measured | None = None
    """The most that vLLM was asked to take by a start that survived load."""
    terms: Mapping[str, Measured] = field(default_factory=dict)
    """Of a rank, by the names of ``Demand``'s terms; ``consumed`` is all that isn't KV cache."""
    settings: RunSettings | None = None
    """Those of the newest start that served."""
    skip_profiling: Measured | None = None
    """``consumed`` where the evidence is strong enough to do without vLLM's own measurement."""
    pinned: Mapping[str, FieldValue] = field(default_factory=dict)
    """Fields whose values the user pinned."""
    elsewhere: Elsewhere | None = None
    """Where workers of a start ran on other nodes."""
    killed_compiling: str | None = None
    """A start that was killed, for the machine's memory as it seems, while vLLM compiled and profiled."""
    estimated_context: tuple[int, str] | None = None
    """Tokens that vLLM said would fit, where the context didn't, and the start that failed so."""
    restless_bytes: int = 0
    """What came to be missing between plan and check in the attempts just before."""


@dataclass(frozen=True)
class Share:
    """How much of each device one engine may take."""

    amount: float
    """A fraction of the device, or bytes."""
    is_fraction: bool


@dataclass(frozen=True)
class Rules:
    """The part of the user's settings that planning needs."""

    policy: str = "balanced"
    min_context_tokens: int = 4096
    headroom_bytes: int | None = None
    share: Share | None = None
    """None: all that is free."""


@dataclass(frozen=True)
class Decision:
    """The value of one field, who decided it, and why. ``suggested`` is ours where the user's word stands."""

    field: str
    value: FieldValue
    source: Source
    why: str
    suggested: FieldValue = None


@dataclass(frozen=True)
class Budget:
    """Where the memory of the tightest device goes. ``asked`` is per rank; the rest is per device.

    What others hold, the start-up overhead, what is asked and what is left make up the total. What is asked is split
    into weights, activations, CUDA graphs, non-torch memory and the KV cache where the model was weighed.
    """

    device: str
    total_bytes: int
    free_bytes: int
    startup_overhead_bytes: int
    startup_overhead_source: Source
    headroom_bytes: int
    headroom_source: Source
    asked_bytes: int
    ranks: int
    weights_bytes: int = 0
    activations_bytes: int = 0
    cuda_graphs_bytes: int = 0
    non_torch_bytes: int = 0
    kv_cache_bytes: int = 0
    graphs_beside_bytes: int = 0
    """CUDA graphs that this vLLM doesn't count into what it asks for: it is asked for less."""
    claimed_bytes: int = 0
    """Of what is free: what other engines are about to take."""
    share_bytes: int | None = None
    """What the user lets this engine take at most; None: all that is free."""

    @property
    def usable_bytes(self) -> int:
        """Of what is free, what this engine may take."""
        unclaimed = max(0, self.free_bytes - self.claimed_bytes)
        return unclaimed if self.share_bytes is None else min(unclaimed, self.share_bytes)

    @property
    def unavailable_bytes(self) -> int:
        """What other processes, the operating system and the driver hold."""
        return self.total_bytes - self.free_bytes

    @property
    def left_bytes(self) -> int:
        """What nobody takes: the headroom, and more where the user fixed a smaller share. 0 where nothing fits."""
        taken = self.weights_bytes + self.activations_bytes + self.cuda_graphs_bytes + self.non_torch_bytes
        return max(0, self.free_bytes - self.startup_overhead_bytes - taken - self.kv_cache_bytes)


@dataclass(frozen=True)
class KvSummary:
    """The KV cache of a plan, for one engine."""

    bytes_per_token: int
    """On one rank, where every layer keeps every token."""
    block_size: int
    blocks: int
    tokens: int
    max_concurrency: float
    """Requests of the whole context that fit at once, as vLLM counts them."""


@dataclass(frozen=True)
class Remedy:
    """One change that would make a model fit, or fit better."""

    change: str
    effect_bytes: int
    """What it gains on each device."""
    flag: str | None = None
    """As vLLM's command line takes it; None where it isn't a flag."""


@dataclass(frozen=True)
class Concession:
    """Something given up so that the model fits, and what that bought on each device."""

    change: str
    bought_bytes: int


@dataclass(frozen=True)
class Confidence:
    """How sure the figures are."""

    source: Source
    error_bars: dict[str, int] = field(default_factory=dict)
    """Half-width in bytes by term of the budget."""


@dataclass(frozen=True)
class Plan:
    """One decision per field, the budget they come from, and what the user should be told."""

    decisions: tuple[Decision, ...]
    budget: Budget | None
    warnings: tuple[str, ...] = ()
    record_id: str | None = None
    """The record that the plan starts from, if any."""
    estimated: bool = False
    """Whether what the model takes was weighed; else only the device was."""
    kv: KvSummary | None = None
    """None: not weighed, or a model without a KV cache."""
    shortfall_bytes: int = 0
    """What each device lacks; 0 when the model fits."""
    refusals: tuple[str, ...] = ()
    """Why vLLM won't start this, whatever memory there is."""
    remedies: tuple[Remedy, ...] = ()
    """The most useful first."""
    concessions: tuple[Concession, ...] = ()
    """In the order in which they were made."""
    confidence: Confidence = Confidence("estimate")

    def decision(self, name: str) -> Decision:
        """The decision about one of ``FIELDS``."""
        return next(d for d in self.decisions if d.field == name)

    @property
    def fits(self) -> bool:
        """Whether there is a utilisation to ask for, and, where the model was weighed, room for it."""
        return self.decision("gpu_memory_utilization").suggested is not None and not (
            self.shortfall_bytes or self.refusals
        )

    @property
    def filled(self) -> dict[str, FieldValue]:
        """The fields that we fill: neither the user's nor left to vLLM."""
        return {d.field: d.value for d in self.decisions if d.source in ("record", "prior", "estimate")}

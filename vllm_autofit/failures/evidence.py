"""Gathers what a log or an exception says, in constant memory, and keeps the line that explains the most."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache

from vllm_autofit.failures.kinds import CAPACITY, Kind, Weight
from vllm_autofit.failures.lookalikes import NOT_CAPACITY, ON_CHIP
from vllm_autofit.failures.phase import PhaseWalk, inner

MOST_SOURCES = 512
"""Processes whose tracebacks are followed at once; the one that was silent longest is forgotten."""

QUIET = frozenset({"DEBUG", "INFO"})

ADVICE = re.compile(
    r"\b(?:may|might|could|can(?!')|if|avoid|prevent|risk|potential|possibl[ey]|likely)\b.{0,80}$", re.I
)
"""What stands before words that only speak of a failure that could happen."""
OPEN_WORDS = frozenset({"device_allocation", "host_allocation", "killed", "sigkill"})
"""Kinds that are recognised by words that advice uses too."""

STAGES = (
    ("Starting to load model", "weight_load"),
    ("oading weights took", "profile_run"),
    ("oading model weights took", "profile_run"),
    ("odel loading took", "profile_run"),
    ("Encoder cache will be initialized", "multimodal_profile"),
    ("profile run for multi-modal", "multimodal_profile"),
    ("Dynamo bytecode transform", "profile_run"),
    ("KV cache size: ", "kv_alloc"),
    ("GPU blocks: ", "kv_alloc"),
    ("Capturing ", "cudagraph_capture"),
    ("Graph capturing finished", "sampler_warmup"),
    ("Application startup complete", "runtime"),
    ("Avg prompt throughput", "runtime"),
)
"""What vLLM 0.6 to 0.33 says of its progress, and the phase that comes next."""
NEW_START = "vLLM API server version"

CPU_BACKEND = (
    "detected platform cpu",
    "device_config=cpu",
    "/cpu_worker.py",
    "/cpu_model_runner.py",
    "/openvino_worker.py",
    "VLLM_CPU_KVCACHE_SPACE` ",
    "VLLM_OPENVINO_KVCACHE_SPACE` ",
)
"""What only a start on the CPU or OpenVINO backend says. There the machine's memory is the device's."""

UTILIZATION = re.compile(r"gpu[-_]memory[-_]utilization['\"]?[ =:]+(0?\.\d+|1\.0\b)")


@dataclass
class Finding:
    """A line that explains something.

    Attributes:
        kind: what it says.
        weight: how much that explains, here.
        text: the line.
        source: the process that wrote it.
        phase: what the functions of its traceback say.
        stage: how far the start had come.
    """

    kind: Kind
    weight: Weight
    text: str
    source: str
    phase: str | None
    stage: str | None
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass
class _Trace:
    walk: PhaseWalk = field(default_factory=PhaseWalk)
    over: bool = False
    chained: bool = False


class Evidence:
    """What was found so far."""

    def __init__(self) -> None:
        self.best: Finding | None = None
        self.stage: str | None = None
        self.on_cpu = False
        self.died_serving = False
        self.failed_to_start = False
        self.utilization: float | None = None
        self._traces: OrderedDict[str, _Trace] = OrderedDict()

    def start_trace(self, source: str) -> None:
        """A traceback begins. It belongs to the one before if that was announced."""
        trace = self._trace(source)
        trace.walk, trace.over = PhaseWalk(), False

    def chain(self, source: str) -> None:
        """The next traceback is of the same failure, further out."""
        self._trace(source).chained = True

    def frame(self, source: str, file: str, function: str) -> None:
        """One function of a traceback, outermost first."""
        trace = self._trace(source)
        if trace.over:
            trace.walk, trace.over = PhaseWalk(), False
        trace.walk.step(file, function)
        self.on_cpu = self.on_cpu or any(each in file for each in CPU_BACKEND)

    def code(self, source: str, text: str) -> None:
        """The source below a frame."""
        trace = self._trace(source)
        if not trace.over:
            trace.walk.calls(text)

    def says(self, source: str, level: str, text: str) -> None:
        """A line that is neither a frame nor code."""
        trace = self._trace(source)
        trace.over = True
        kind = kind_of(text)
        if kind is None:
            return
        self.died_serving = self.died_serving or kind.name == "engine_dead"
        self.failed_to_start = self.failed_to_start or kind.name == "initialization"
        weight = Weight.NOTICE if level in ("WARNING", "WARN") else kind.weight
        self._weigh(Finding(kind, weight, text, source, trace.walk.phase, self.stage), trace.chained)

    def progress(self, text: str) -> None:
        """A line that tells how far a start has come, or what it was told."""
        self.stage = next((stage for words, stage in STAGES if words in text), self.stage)
        self.on_cpu = self.on_cpu or any(each in text for each in CPU_BACKEND)
        found = UTILIZATION.search(text) if "tilization" in text else None
        if found:
            self.utilization = float(found[1])

    def phase_of_a_trace(self) -> str | None:
        """The phase of any traceback there is: its last line may be missing."""
        return next((trace.walk.phase for trace in self._traces.values() if trace.walk.phase), None)

    def _trace(self, source: str) -> _Trace:
        trace = self._traces.pop(source, None) or _Trace()
        self._traces[source] = trace
        if len(self._traces) > MOST_SOURCES:
            self._traces.popitem(last=False)
        return trace

    def _weigh(self, finding: Finding, chained: bool) -> None:
        best = self.best
        if best is not None and best.weight >= finding.weight:
            if _same(best, finding):
                _complete(best, finding, chained and best.source == finding.source)
            return
        finding.numbers = finding.kind.numbers(finding.text)
        if best is not None and chained and best.source == finding.source:
            finding.phase = inner(finding.phase, best.phase)
        self.best = finding


def kind_of(text: str) -> Kind | None:
    """The kind of a message."""
    return _kind_of(re.sub(r"\d{4,}", "1000", text))


@lru_cache(maxsize=2048)
def _kind_of(text: str) -> Kind | None:
    for kind in (ON_CHIP, *CAPACITY, *NOT_CAPACITY):
        found = kind.pattern.search(text)
        if found and not (kind.name in OPEN_WORDS and ADVICE.search(text, 0, found.start())):
            return kind
    return None


def _same(best: Finding, finding: Finding) -> bool:
    """Whether two lines speak of the same: of memory that ran out, or in the same words."""
    if best.kind.weight is Weight.MEMORY:
        return finding.kind.weight is Weight.MEMORY and finding.kind.resource == best.kind.resource
    return best.text == finding.text


def _complete(best: Finding, finding: Finding, same_stack: bool) -> None:
    """Take from a later line what an earlier one of the same failure didn't say."""
    if same_stack:
        best.phase = inner(finding.phase, best.phase)
    best.phase = best.phase or finding.phase
    if best.kind is not finding.kind or not best.numbers:
        best.numbers = {**finding.kind.numbers(finding.text), **best.numbers}
        if best.kind.phase is None and finding.kind.phase is not None:
            best.kind = finding.kind

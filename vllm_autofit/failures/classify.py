"""A log or an exception -> why it failed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from vllm_autofit.failures.evidence import NEW_START, QUIET, Evidence, Finding
from vllm_autofit.failures.failure import Confidence, Failure, Phase
from vllm_autofit.failures.kinds import Weight
from vllm_autofit.failures.lines import Line, read_line
from vllm_autofit.failures.lookalikes import ABOUT_RANKS, TOPICS
from vllm_autofit.failures.phase import frames
from vllm_autofit.failures.remedies import remedies

TROUBLE = (
    "rror", "emory", "xception", 'File "', "Traceback", "illed", "died", "exit", "OOM", "oom", "space", "alloc",
    "ALLOC", "OUT_OF", "OutOf", "signal", "SIG", "dumped", "ault", "ailure", "ailed", "imeout", "imed out", "nccl",
    "NCCL", "shm", "hbm", "too ", "not ", "Not ", "ould", "xceed",
)  # fmt: skip
PROGRESS = ("oading", "load model", "blocks: ", "cache size", "aptur", "startup complete", "throughput", "API server v",
            "tilization", "latform", "Encoder cache", "multi-modal", "Dynamo", "config")  # fmt: skip
"""A line without any of these says nothing; looking for them is cheap."""
INFO = re.compile(r"(?:^|[ )\]|])INFO(?:: | \d)")
AT_MOST = 200
"""Characters in front of a line's level."""
FRAME = re.compile(r'^\W*File "([^"]{1,400})", line \d+, in (\S+)')
CODE = re.compile(r"^ {4}|^\s*[\^~]+\s*$|^ {2}\[Previous line|^\[\.\.\.\]$")
"""What follows a frame in a traceback: its source, and marks below it."""
ALLOCATIONS = frozenset({"device_allocation", "host_allocation", "pinned", "killed", "shm"})
"""Kinds whose sentence doesn't say when."""
WHEN = {
    "startup_check": "before anything was loaded",
    "weight_load": "while the weights were loaded",
    "profile_run": "in the profile run, which runs the largest batch once",
    "multimodal_profile": "when the encoder was run with the largest image or video",
    "kv_alloc": "when the KV cache was allocated",
    "cudagraph_capture": "while CUDA graphs were captured",
    "sampler_warmup": "in the warm-up",
    "lora_load": "when an adapter, or the buffers for adapters, were loaded",
    "nccl_init": "when the connection between devices was set up",
    "wake_up": "when the engine was woken up",
    "runtime": "while serving",
}
MORE = ("above exception was the direct cause", "During handling of the above exception")


def classify_log(lines: Iterable[str]) -> Failure:
    """Why the start or the server that wrote ``lines`` failed. Reads once, keeps nothing but its conclusions."""
    evidence, earlier = Evidence(), Evidence()
    after_frame = False
    for raw in lines:
        if not after_frame and not _worth_reading(raw):
            continue
        after_frame = 'File "' in raw
        for line in read_line(raw):
            if NEW_START in line.text:
                earlier, evidence = _more_telling(evidence, earlier), Evidence()
            _take(evidence, line)
    return _conclude(_more_telling(evidence, earlier))


def classify_exception(error: BaseException) -> Failure:
    """Why ``error`` was raised: the root of its chain, the phase from the functions on its tracebacks."""
    evidence = Evidence()
    for each in _chain(error):
        evidence.start_trace("")
        for frame in frames(each):
            evidence.frame("", frame.f_code.co_filename, frame.f_code.co_name)
        for text in _last_lines(each):
            evidence.says("", "", text)
        evidence.chain("")
    return _conclude(evidence)


def _worth_reading(raw: str) -> bool:
    if "INFO" in raw and INFO.search(raw, 0, AT_MOST):  # most of a server's log
        return any(map(raw.__contains__, PROGRESS))
    return any(map(raw.__contains__, TROUBLE)) or any(map(raw.__contains__, PROGRESS))


def _take(evidence: Evidence, line: Line) -> None:
    frame = FRAME.search(line.text)
    if frame:
        evidence.frame(line.source, frame[1], frame[2])
    elif line.text.startswith("Traceback (most recent call last)"):
        evidence.start_trace(line.source)
    elif any(each in line.text for each in MORE):
        evidence.chain(line.source)
    elif line.level in QUIET:
        evidence.progress(line.text)
    elif CODE.search(line.text):
        evidence.code(line.source, line.text)
    elif line.text.strip():
        evidence.progress(line.text)
        evidence.says(line.source, line.level, line.text)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception's causes, the first one first, and at last itself."""
    chain: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and not any(each is known for known in chain):
        chain.append(each)
        each = each.__cause__ or each.__context__
    return reversed(chain)


def _last_lines(error: BaseException) -> list[str]:
    """What Python prints below the traceback."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    message = str(error)
    return (f"{name}: {message}" if message else name).splitlines()


def _more_telling(evidence: Evidence, earlier: Evidence) -> Evidence:
    """Of two starts in one log, the last one that tells anything."""
    return evidence if evidence.best is not None else earlier


def _conclude(evidence: Evidence) -> Failure:
    finding = evidence.best
    if finding is None:
        return Failure(False, "none", "other", "Nothing here says that anything failed.")
    is_capacity = finding.kind.is_capacity and finding.weight >= Weight.CAUSE
    resource = finding.kind.resource
    if resource == "device" and finding.kind.fixed and evidence.on_cpu:
        resource = "host"
    phase = _phase(finding, evidence)
    cause = finding.kind.cause or finding.text.strip()[:300]
    if finding.kind.name in ALLOCATIONS and phase in WHEN:
        cause = f"{cause.removesuffix('.')} {WHEN[phase]}."
    if is_capacity and _is_a_fault(finding):
        is_capacity, resource = False, "none"
        cause = "An allocation failed on an empty device: a fault of the driver or the installation."
    elif finding.kind.is_capacity and not is_capacity:
        resource = "none"
        cause = f"Only a warning: {finding.text.strip()[:300]}"
    failure = Failure(
        is_capacity,
        resource,
        phase,
        cause,
        finding.numbers,
        confidence=_confidence(finding),
    )
    return replace(failure, remedies=remedies(finding.kind.name, failure, evidence.utilization))


def _is_a_fault(finding: Finding) -> bool:
    """An empty device that refuses a small allocation isn't short of memory."""
    numbers = finding.numbers
    return numbers.get("allocated_bytes") == 0 and numbers.get("tried_bytes", 0) * 10 < numbers.get("free_bytes", 0)


def _phase(finding: Finding, evidence: Evidence) -> Phase:
    kind = finding.kind
    if kind.fixed and kind.phase:
        return kind.phase
    found = finding.phase or kind.phase
    if found is None and evidence.died_serving:
        found = "runtime"
    if found is None and kind.name == "killed" and evidence.failed_to_start:
        found = finding.stage or "weight_load"  # which takes most of the machine's memory
    if found is None and kind.name == "initialization":
        found = evidence.phase_of_a_trace()
    found = found or _topic(finding) or finding.stage or "other"
    return "no_kv_memory" if found == "kv_cache_config" else found  # type: ignore[return-value]


def _topic(finding: Finding) -> Phase | None:
    """Where a message without a traceback belongs, by what it speaks of."""
    if ABOUT_RANKS.search(finding.text):
        return "nccl_init"
    if finding.kind.is_capacity:
        return None
    if finding.kind.name == "exception":
        about = next((phase for words, phase in TOPICS if words.search(finding.text)), None)
        if about is not None:
            return about
    return "startup_check" if finding.stage is None and "ValueError" in finding.text else None


def _confidence(finding: Finding) -> Confidence:
    if finding.weight <= Weight.DEATH or finding.kind.name == "exception":
        return "low"
    if finding.weight is Weight.MEMORY and (finding.phase or finding.kind.phase):
        return "high"
    return "medium"

"""Compares the estimator with real vLLM on the CPU: small models of many architectures, each started in turn.

    python -m benchmarks.against_vllm [--only NAME ...] [--record FILE] [--recorded FILE] [--details FOLDER]
                                      [--markdown FILE] [--models FOLDER]

``--record`` keeps what vLLM said; ``--recorded`` compares with that and starts nothing. Exit status 1 if weights are
off by more than 0.1 % (from headers), or a figure of the KV cache differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dev.architectures import make_model, recipes
from dev.vllm_truth import measure

CPU_FEATURES = ("avx512_bf16", "amx_tile")
"""Flags of the host that change what vLLM's CPU backend keeps."""
ROOT_CAUSE = re.compile(r"(\(.*\) )*(ERROR [^\]]*\] )?\w*(Error|Exception): ")
"""A traceback's last line, as vLLM's processes print it; the first is the root cause."""
VARIATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama fp8 cache": ("llama", {"kv_cache_dtype": "fp8"}),
    "llama blocks of 64": ("llama", {"block_size": 64}),
    "llama float32": ("llama", {"dtype": "float32"}),
    "llama int8 at load": ("llama", {"quantization": "int8_per_channel_weight_only"}),
    "gemma2 one kind of cache": ("gemma2", {"disable_hybrid_kv_cache_manager": True}),
    "gemma3_text long steps": ("gemma3_text", {"max_num_batched_tokens": 3000}),
    "mistral short": ("mistral", {"max_model_len": 777}),
    "jamba no prefix caching": ("jamba", {"enable_prefix_caching": False}),
    "granite_hybrid no prefix caching": ("granite_hybrid", {"enable_prefix_caching": False}),
    "qwen3_next float32 states": ("qwen3_next", {"mamba_cache_dtype": "float32"}),
    "llama tp2": ("llama", {"tensor_parallel_size": 2}),
    "qwen2 tp2": ("qwen2", {"tensor_parallel_size": 2}),
    "qwen3_moe tp2": ("qwen3_moe", {"tensor_parallel_size": 2}),
    "qwen3_moe ep2": ("qwen3_moe", {"tensor_parallel_size": 2, "enable_expert_parallel": True}),
    "deepseek_v3 tp2": ("deepseek_v3", {"tensor_parallel_size": 2}),
    "granite_hybrid tp2": ("granite_hybrid", {"tensor_parallel_size": 2}),
    "falcon_h1 tp2": ("falcon_h1", {"tensor_parallel_size": 2}),
    "qwen3_next tp2": ("qwen3_next", {"tensor_parallel_size": 2}),
    "jamba tp2": ("jamba", {"tensor_parallel_size": 2}),
    "mamba tp2": ("mamba", {"tensor_parallel_size": 2}),
    "llama pp2": ("llama", {"pipeline_parallel_size": 2}),
}
"""Name -> recipe and arguments beside the recipe's own."""


def cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> recipe and all arguments for vLLM."""
    table = recipes()
    plain: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in table}
    return {name: (base, {**table[base].arguments, **more}) for name, (base, more) in {**plain, **VARIATIONS}.items()}


def truth_of(name: str, models: Path) -> dict[str, Any]:
    """Start vLLM for one case in this process: the model as it lies on disk, and what it took."""
    base, arguments = cases()[name]
    folder = make_model(base, models / base)
    truth = measure(folder, arguments)
    return {"config": json.loads((folder / "config.json").read_text()), "arguments": arguments, **truth}


def measure_case(name: str, models: Path) -> dict[str, Any]:
    """The same in a process of its own, or ``{"refused": vLLM's reason, "log": the end of what it printed}``."""
    with tempfile.TemporaryDirectory() as place:
        child = multiprocessing.get_context("fork").Process(target=_measure_here, args=(name, models, Path(place)))
        child.start()
        child.join()
        log = (Path(place) / "log").read_text(errors="replace")
        answer = Path(place) / "answer"
        if answer.exists():
            found: dict[str, Any] = json.loads(answer.read_text())
            return found
        reasons = [line.strip() for line in log.splitlines() if ROOT_CAUSE.match(line)]
        return {"refused": (reasons or [f"the process ended with {child.exitcode}"])[0][:300], "log": log[-20000:]}


def _measure_here(name: str, models: Path, place: Path) -> None:
    """In the child: its output goes to a file, so that vLLM's doesn't mix with the table."""
    log = os.open(place / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    (place / "answer").write_text(json.dumps(truth_of(name, models)))


def measured(names: Sequence[str], models: Path) -> dict[str, Any]:
    """Start vLLM for each name in turn."""
    import vllm.entrypoints.llm
    import vllm.v1.engine.core
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.cpu_worker  # noqa: F401  (loaded once, for all forks)

    record: dict[str, Any] = {
        "vllm": version("vllm").split("+")[0],
        "machine": platform.machine(),
        "cpu_features": [each for each in CPU_FEATURES if each in Path("/proc/cpuinfo").read_text()],
        "cases": {},
    }
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        record["cases"][name] = measure_case(name, models)
    return record


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(cases()))
    parser.add_argument("--record", type=Path)
    parser.add_argument("--recorded", type=Path)
    parser.add_argument("--details", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--models", type=Path, default=Path(".cache") / "architectures")
    options = parser.parse_args()
    if options.recorded:
        record = json.loads(options.recorded.read_text())
    else:
        record = measured(options.only or list(cases()), options.models)
    if options.details:
        options.details.mkdir(parents=True, exist_ok=True)
        for name, truth in record["cases"].items():
            (options.details / f"{name}.json").write_text(json.dumps(truth, indent=1))
    if options.record:
        options.record.write_text(recordable(record))
    from benchmarks.comparison import compared, page  # late, because worker processes of vLLM import this module too

    rows = compared(record)
    text = page(record, rows)
    print(text)
    if options.markdown:
        options.markdown.write_text(text)
    sys.exit(0 if all(row.agrees for row in rows) else 1)


def recordable(record: dict[str, Any]) -> str:
    """JSON with one case a line, without the listings that only ``--details`` keeps."""
    lines = []
    for name, truth in record["cases"].items():
        kept = {key: value for key, value in truth.items() if key != "log"}
        kept["ranks"] = [
            {**rank, "loaded": {key: value for key, value in rank["loaded"].items() if key != "tensors"}}
            for rank in truth.get("ranks", [])
        ]
        lines.append(f"  {json.dumps(name)}: {json.dumps(kept)}")
    head = json.dumps({key: value for key, value in record.items() if key != "cases"})[:-1]
    return head + ', "cases": {\n' + ",\n".join(lines) + "\n}}\n"


if __name__ == "__main__":
    main()

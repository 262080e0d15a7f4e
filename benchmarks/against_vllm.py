"""Compares the estimator with real vLLM on the CPU: small models of many architectures, each started in turn.

    python -m benchmarks.against_vllm [--only NAME ...] [--record FILE] [--recorded FILE] [--details FOLDER]
                                      [--markdown FILE] [--models FOLDER]

``--record`` keeps what vLLM said; ``--recorded`` compares with that and starts nothing. Exit status 1 if weights are
off by more than 0.1 % (from headers), or a figure of the KV cache differs. vLLM's vision models need torchvision,
which the pinned environment lacks: without it they come out as refused, so record them where it is installed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import signal
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dev.architectures import make_model, recipes
from dev.vllm_truth import measure, tensors_of

PATIENCE_SECONDS = 300
"""For one start: the slowest takes half a minute, and some settings make vLLM's workers wait for each other forever."""
CONTENT = ("config", "tensors")
"""What a record keeps once for all cases of a model."""
CPU_FEATURES = ("avx512_bf16", "amx_tile")
"""Flags of the host that change what vLLM's CPU backend keeps."""
ROOT_CAUSE = re.compile(
    r"^(?:\(.*?\) )*(?:ERROR [^\]]*\] )?(\w*(?:Error|Exception): .*|  Value error, .*?)(?: \[type=.*)?$", re.MULTILINE
)
"""A traceback's last line, as vLLM's processes print it, or that of pydantic with the reason; the first is the root
cause."""


def _drafting(method: str, model: str | None = None) -> dict[str, Any]:
    """Arguments for drafting three tokens a step; ``model`` is a recipe's name."""
    draft = {"model": model} if model else {}
    return {"speculative_config": {"method": method, "num_speculative_tokens": 3, **draft}}


ADAPTERS = {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8}
VARIATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama fp8 cache": ("llama", {"kv_cache_dtype": "fp8"}),
    "llama blocks of 64": ("llama", {"block_size": 64}),
    "llama float32": ("llama", {"dtype": "float32"}),
    "llama pp2": ("llama", {"pipeline_parallel_size": 2}),
    "gemma2 pp2": ("gemma2", {"pipeline_parallel_size": 2}),
    "granite_hybrid pp2": ("granite_hybrid", {"pipeline_parallel_size": 2}),
    "whisper tp2": ("whisper", {"tensor_parallel_size": 2}),
    "llama_awq tp2": ("llama_awq", {"tensor_parallel_size": 2}),
    "qwen3_5 text only": ("qwen3_5", {"limit_mm_per_prompt": {"image": 0, "video": 0}}),
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
    "llama lora": ("llama", ADAPTERS),
    "llama lora tp2": ("llama", {**ADAPTERS, "tensor_parallel_size": 2}),
    "qwen2 lora": ("qwen2", ADAPTERS),
    "qwen3_moe lora": ("qwen3_moe", ADAPTERS),
    "granite_hybrid lora": ("granite_hybrid", ADAPTERS),
    "llama_awq lora": ("llama_awq", ADAPTERS),
    "llama n-gram": ("llama", _drafting("ngram")),
    "llama draft model": ("llama", _drafting("draft_model", "llama_draft")),
    "llama draft model tp2": ("llama", {**_drafting("draft_model", "llama_draft"), "tensor_parallel_size": 2}),
    "llama eagle": ("llama", _drafting("eagle", "llama_eagle")),
    "llama eagle tp2": ("llama", {**_drafting("eagle", "llama_eagle"), "tensor_parallel_size": 2}),
    "llama eagle pp2": ("llama", {**_drafting("eagle", "llama_eagle"), "pipeline_parallel_size": 2}),
    "llama eagle3": ("llama", _drafting("eagle3", "llama_eagle3")),
    "llama eagle3 tp2": ("llama", {**_drafting("eagle3", "llama_eagle3"), "tensor_parallel_size": 2}),
    "deepseek_v3 mtp": ("deepseek_v3_mtp", _drafting("mtp")),
    "deepseek_v3 mtp tp2": ("deepseek_v3_mtp", {**_drafting("mtp"), "tensor_parallel_size": 2}),
    "glm4_moe mtp": ("glm4_moe_mtp", _drafting("mtp")),
    "qwen3_next mtp": ("qwen3_next_mtp", _drafting("mtp")),
    "qwen3_5 mtp": ("qwen3_5_mtp", _drafting("mtp")),
    "llama fp8_e5m2 cache": ("llama", {"kv_cache_dtype": "fp8_e5m2"}),
    "gemma2 fp8 cache": ("gemma2", {"kv_cache_dtype": "fp8"}),
    "deepseek_v2 fp8 cache": ("deepseek_v2", {"kv_cache_dtype": "fp8"}),
    "qwen3_next fp8 cache": ("qwen3_next", {"kv_cache_dtype": "fp8"}),
    "llama weights offloaded": ("llama", {"cpu_offload_gb": 1}),
    "llama KV cache offloaded": ("llama", {"kv_offloading_size": 1}),
    "llama sleep mode": ("llama", {"enable_sleep_mode": True}),
    "llama int8 at load": ("llama", {"quantization": "int8_per_channel_weight_only"}),
    "llama fp8 at load": ("llama", {"quantization": "fp8"}),
    "llama mxfp8 at load": ("llama", {"quantization": "mxfp8"}),
    "llama bitsandbytes at load": ("llama", {"quantization": "bitsandbytes"}),
    "mixtral experts_int8 at load": ("mixtral", {"quantization": "experts_int8"}),
    "qwen2 decode context parallel": ("qwen2", {"tensor_parallel_size": 2, "decode_context_parallel_size": 2}),
    "deepseek_v2 decode context parallel": (
        "deepseek_v2",
        {"tensor_parallel_size": 2, "decode_context_parallel_size": 2},
    ),
    "llama prefill context parallel": ("llama", {"prefill_context_parallel_size": 2}),
}
"""Name -> recipe and arguments beside the recipe's own."""


def cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> recipe and all arguments for vLLM."""
    table = recipes()
    plain: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in table if not table[name].drafts}
    return {name: (base, {**table[base].arguments, **more}) for name, (base, more) in {**plain, **VARIATIONS}.items()}


def truth_of(name: str, models: Path) -> dict[str, Any]:
    """Start vLLM for one case in this process: the model as it lies on disk, and what it took."""
    base, arguments = cases()[name]
    folder = make_model(base, models / base)
    draft = _draft(arguments)
    if draft is None:
        return {**_content(folder), "arguments": arguments, **measure(folder, arguments)}
    beside = make_model(draft, models / draft)
    speculation = {**arguments["speculative_config"], "model": str(beside)}
    truth = measure(folder, {**arguments, "speculative_config": speculation})
    return {**_content(folder), "draft": _content(beside), "arguments": arguments, **truth}


def _draft(arguments: dict[str, Any]) -> str | None:
    """The recipe of what drafts, where a case has one."""
    name: str | None = arguments.get("speculative_config", {}).get("model")
    return name


def _content(folder: Path) -> dict[str, Any]:
    """A model as it lies on disk. ``tensors``: name, dtype, shape and bytes."""
    return {"config": json.loads((folder / "config.json").read_text()), "tensors": tensors_of(folder)}


def measure_case(name: str, models: Path) -> dict[str, Any]:
    """The same in a process of its own, or ``{"refused": vLLM's reason, "log": the end of what it printed}``."""
    with tempfile.TemporaryDirectory() as place:
        child = multiprocessing.get_context("fork").Process(target=_measure_here, args=(name, models, Path(place)))
        child.start()
        child.join(PATIENCE_SECONDS)
        if child.is_alive():
            os.killpg(child.pid or 0, signal.SIGKILL)
            child.join()
        log = (Path(place) / "log").read_text(errors="replace")
        answer = Path(place) / "answer"
        if answer.exists():
            found: dict[str, Any] = json.loads(answer.read_text())
            return found
        reason = ROOT_CAUSE.search(log)
        told = reason[1].strip() if reason else f"the process ended with {child.exitcode}"
        return {"refused": told[:300], "log": log[-20000:]}


def _measure_here(name: str, models: Path, place: Path) -> None:
    """In the child, which leads a process group of its own: its output goes to a file, so that vLLM's doesn't mix with
    the table."""
    os.setpgid(0, 0)
    log = os.open(place / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    (place / "answer").write_text(json.dumps(truth_of(name, models)))


def cpu_features() -> list[str]:
    """Those of this machine's that vLLM's CPU backend looks at."""
    present = Path("/proc/cpuinfo").read_text()
    return [each for each in CPU_FEATURES if each in present]


def measured(names: Sequence[str], models: Path) -> dict[str, Any]:
    """Start vLLM for each name in turn."""
    import vllm.entrypoints.llm
    import vllm.v1.engine.core
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.cpu_worker  # noqa: F401  (loaded once, for all forks)

    record: dict[str, Any] = {
        "vllm": version("vllm").split("+")[0],
        "machine": platform.machine(),
        "cpu_features": cpu_features(),
        "cases": {},
    }
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        record["cases"][name] = measure_case(name, models)
    return record


def write_record(file: Path, record: dict[str, Any]) -> None:
    """One model or case a line, added to what ``file`` has; listings that only ``--details`` keeps are left out."""
    old = json.loads(file.read_text()) if file.exists() else {"models": {}, "cases": {}}
    models, kept = old["models"], old["cases"]
    for name, truth in record["cases"].items():
        kept[name] = {key: value for key, value in truth.items() if key not in ("log", "draft", *CONTENT)}
        if "refused" not in truth:
            kept[name]["model"] = cases()[name][0]
            models[kept[name]["model"]] = {key: truth[key] for key in CONTENT}
            kept[name]["ranks"] = [_without_tensors(rank) for rank in truth["ranks"]]
        if "draft" in truth:
            models[_draft(truth["arguments"])] = truth["draft"]
    parts = [f"{json.dumps(key)}: {json.dumps(record[key])}" for key in ("vllm", "machine", "cpu_features")]
    parts += [f'"models": {_lines(models)}', f'"cases": {_lines(kept)}']
    file.write_text("{" + ",\n".join(parts) + "}\n")


def _without_tensors(rank: dict[str, Any]) -> dict[str, Any]:
    return {**rank, "loaded": {key: value for key, value in rank["loaded"].items() if key != "tensors"}}


def _lines(entries: dict[str, Any]) -> str:
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()) + "\n}"


def read_record(file: Path) -> dict[str, Any]:
    """What ``write_record`` wrote, each case with its model."""
    record: dict[str, Any] = json.loads(file.read_text())
    models = record.pop("models")
    for truth in record["cases"].values():
        if "refused" not in truth:
            truth.update(models[truth["model"]])
            draft = _draft(truth["arguments"])
            if draft is not None:
                truth["draft"] = models[draft]
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
        record = read_record(options.recorded)
    else:
        record = measured(options.only or list(cases()), options.models)
    if options.details:
        options.details.mkdir(parents=True, exist_ok=True)
        for name, truth in record["cases"].items():
            (options.details / f"{name}.json").write_text(json.dumps(truth, indent=1))
    if options.record:
        write_record(options.record, record)
    from benchmarks.comparison import compared, page  # late, because worker processes of vLLM import this module too

    rows = compared(record)
    text = page(record, rows)
    print(text)
    if options.markdown:
        options.markdown.write_text(text)
    sys.exit(0 if all(row.agrees for row in rows) else 1)


if __name__ == "__main__":
    main()

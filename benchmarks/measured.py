"""Published starts as data: rows of ``measurements.jsonl``, each with the launch that it describes.

What a row leaves out takes vLLM's default for its version and device, as for a server; ``stated`` tells the two apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_autofit.architecture import ModelFacts
from vllm_autofit.deployment import Deployment
from vllm_autofit.errors import AutofitError
from vllm_autofit.facts.catalogue import find_device
from vllm_autofit.planning.defaults import deployment_of, parsed_version
from vllm_autofit.values import DeviceFacts, Request

GIB = 2**30

ASSUMED_VERSION = (0, 19)
"""Where a row doesn't say: the middle of what the rows with a version have. Such rows are reported apart."""

EARLY_SEQUENCES = 1024
"""Default of the new engine up to 0.8.3, on every device: two of the rows say so."""

OWN_DRAFTERS = ("eagle", "dflash", "dspark", "draft_model")
"""Ways of drafting with a checkpoint of its own, whose layers share the KV cache."""

COLD = frozenset({"m324", "m325", "m326"})
"""Starts in a new container whose commands, in the source, keep no compile cache; others say it in their flags."""

OTHER_DEVICES = ("amd", "radeon", "instinct", "intel", "ascend", "apple", "jetson", "gb10", "unified", "gh200")


@dataclass(frozen=True)
class Row:
    """One published start."""

    raw: Mapping[str, Any]

    @property
    def id(self) -> str:
        """As the file names it."""
        return str(self.raw["id"])

    @property
    def model(self) -> str:
        """As published; empty where it wasn't named."""
        return str(self.raw.get("model", ""))

    def gib(self, name: str) -> float | None:
        """A figure in GiB, None where it wasn't printed."""
        value = self.raw.get(name)
        return float(value) if isinstance(value, int | float) else None

    @property
    def version(self) -> tuple[int, int] | None:
        """Major and minor, None where the row names a date, a commit or nothing."""
        return parsed_version(str(self.raw.get("vllm_version", "")))

    @property
    def old_engine(self) -> bool:
        """Whether it ran on the engine that 0.9 gave up: another profile run, other defaults."""
        text = str(self.raw.get("vllm_version", "")) + str(self.raw.get("flags", ""))
        if "V0" in text:
            return True
        return self.version is not None and self.version <= (0, 8) and "V1" not in text

    @property
    def total_bytes(self) -> int | None:
        """Of one device: as printed, else as the catalogue knows its kind."""
        printed = self.gib("gpu_total_gib")
        if printed is not None:
            return round(printed * GIB)
        return self._catalogue()[0]

    @property
    def total_is_printed(self) -> bool:
        """Whether the device's size is the start's own."""
        return self.gib("gpu_total_gib") is not None

    def _catalogue(self) -> tuple[int | None, tuple[int, int] | None]:
        name = re.sub(r"\(.*?\)", "", str(self.raw.get("gpu", ""))).strip()
        try:
            known = find_device(name)
        except AutofitError:
            return None, None
        return known.total_bytes, known.compute_capability

    @property
    def kind(self) -> str:
        """What the device is, roughly: for the tables."""
        name = str(self.raw.get("gpu", "")).lower()
        if any(word in name for word in OTHER_DEVICES):
            return "other"
        total = self.total_bytes
        if total is None:
            return "not stated"
        return "70 GiB and more" if total >= 70 * GIB else "under 70 GiB"

    @property
    def version_range(self) -> str:
        """Where vLLM's profile run changed."""
        if self.old_engine:
            return "V0"
        version = self.version
        if version is None:
            return "not stated"
        if version <= (0, 16):
            return "0.16 and before"
        return "0.17 to 0.19" if version <= (0, 19) else "0.20 and later"

    @property
    def device(self) -> DeviceFacts:
        """The device, with what was free of it where the row says so."""
        total, capability = self._catalogue()
        size = self.total_bytes or total or 0
        free = self.gib("free_at_start_gib")
        return DeviceFacts(
            kind="cuda",
            index=0,
            name=str(self.raw.get("gpu", "")),
            total_bytes=size,
            free_bytes=size if free is None else min(size, round(free * GIB)),
            compute_capability=capability,
        )

    def deployment(self, facts: ModelFacts) -> Deployment:
        """The launch that the row describes."""
        return deployment_of(self.request, facts, self.device, version=self.version or ASSUMED_VERSION)

    @property
    def request(self) -> Request:
        """What was asked for, as far as the row says."""
        raw, flags = self.raw, str(self.raw.get("flags", ""))
        knobs: dict[str, object] = {
            "max_num_batched_tokens": raw.get("max_num_batched_tokens"),
            "tensor_parallel_size": raw.get("tensor_parallel_size", raw.get("n_gpus", 1) if self._only_ranks() else 1),
            "pipeline_parallel_size": raw.get("pipeline_parallel_size", 1),
            "dtype": raw.get("dtype"),
            "block_size": raw.get("block_size"),
            "enable_prefix_caching": raw.get("enable_prefix_caching"),
            "quantization": loaded_as(str(raw.get("quantization", ""))),
            "speculative_config": speculation(str(raw.get("speculative", ""))),
            "language_model_only": "language_model_only" in flags or None,
        }
        if found := re.search(r"cpu[-_]offload[-_]gb[ =](\d+)", flags):
            knobs["cpu_offload_gb"] = float(found[1])
        if "image limit 0" in flags:
            knobs["limit_mm_per_prompt"] = {"image": 0, "video": 0}
        elif found := re.search(r"image=(\d+)", flags):
            knobs["limit_mm_per_prompt"] = {"image": int(found[1])}
        if found := re.search(r"cudagraph_capture_sizes ([0-9,]+)", flags):
            knobs["compilation_config"] = {"cudagraph_capture_sizes": [int(size) for size in found[1].split(",")]}
        elif found := re.search(r"max_cudagraph_capture_size (\d+)", flags):
            knobs["compilation_config"] = {"max_cudagraph_capture_size": int(found[1])}
        if "disable-hybrid-kv-cache-manager" in flags:
            knobs["disable_hybrid_kv_cache_manager"] = True
        if "enable-expert-parallel" in flags or "enable_expert_parallel" in flags:
            knobs["enable_expert_parallel"] = True
        if "ESTIMATE_CUDAGRAPHS=0" in flags:
            knobs["VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS"] = False
        if found := re.search(r"mamba[-_]ssm[-_]cache[-_]dtype (\w+)", flags):
            knobs["mamba_ssm_cache_dtype"] = found[1]
        cache = str(raw.get("kv_cache_dtype", "auto")).split()[0]
        values = {
            "max_model_len": raw.get("max_model_len"),
            "max_num_seqs": raw.get("max_num_seqs", EARLY_SEQUENCES if self._is_early() else None),
            "kv_cache_dtype": cache,
            "enforce_eager": raw.get("enforce_eager"),
            "gpu_memory_utilization": raw.get("gpu_memory_utilization"),
        }
        set_by_user = frozenset(name for name, value in values.items() if value is not None)
        kept = {name: value for name, value in knobs.items() if value is not None}
        return Request(model=self.model, values=values, set_by_user=set_by_user, knobs=kept)

    def _is_early(self) -> bool:
        return bool(re.match(r"0\.(7|8\.[0-3])", str(self.raw.get("vllm_version", "")))) and not self.old_engine

    def _only_ranks(self) -> bool:
        """Whether the number of devices is all that is said about parallelism, and so means tensor parallelism."""
        return "pipeline_parallel_size" not in self.raw

    @property
    def is_cold(self) -> bool:
        """Whether it is known to have compiled the model anew. Others are taken to have found it in the cache."""
        return self.id in COLD or "cold torch.compile cache" in str(self.raw.get("flags", ""))

    @property
    def asked_bytes(self) -> int | None:
        """What vLLM asked each device for; the utilisation is vLLM's default where the row doesn't say."""
        total = self.total_bytes
        if total is None:
            return None
        share = self.gib("gpu_memory_utilization")
        if found := re.search(r"the figures fit gpu_memory_utilization ([0-9.]+)", str(self.raw.get("flags", ""))):
            share = float(found[1].rstrip("."))  # the table that it was copied from has a misprint
        if share is None:
            share = 0.92 if (self.version or (0, 0)) >= (0, 20) else 0.9
        return round(total * share)

    @property
    def gaps(self) -> tuple[str, ...]:
        """What an estimate of activations or of the KV cache has to guess."""
        missing = [] if self.version else ["vLLM version"]
        if "gpu_memory_utilization" not in self.raw:
            missing.append("utilisation")
        if not self.total_is_printed:
            missing.append("the device's size" if self.total_bytes is None else "the device's exact size")
        return tuple(missing)

    def pool_gaps(self, deployment: Deployment, groups: int) -> tuple[str, ...]:
        """What has to be guessed where a pool of known size is cut up into ``groups`` kinds of layers."""
        missing = ["which device's pool it is"] if " + " in str(self.raw.get("gpu", "")) else []
        if groups > 1 and self.version is None:
            missing.append("vLLM version")
        if groups > 1 and "max_model_len" not in self.raw:
            missing.append("context")
        if deployment.speculation and deployment.speculation.method in OWN_DRAFTERS:
            missing.append("the drafter's layers")
        return tuple(missing)


def loaded_as(text: str) -> str | None:
    """Quantisation at load time; None where the checkpoint says it itself."""
    if "online" in text and "fp8" in text:
        return "fp8"
    at_load = text == "bitsandbytes" or "on load" in text or "load_format bitsandbytes" in text
    return "bitsandbytes" if at_load else None


def speculation(text: str) -> dict[str, object] | None:
    """``speculative_config`` of what a row says in words; None where it says too little."""
    method = next((name for name in ("mtp", "ngram", "dspark", "dflash", "eagle") if name in text.lower()), None)
    if "draft model" in text:
        method = "draft_model"
    tokens = re.search(r"(\d+) tokens?", text)
    if method is None:
        return None
    return {"method": method, "num_speculative_tokens": int(tokens[1]) if tokens else 1}


def read_rows(folder: Path) -> list[Row]:
    """The starts of ``measurements.jsonl``."""
    return [Row(entry) for entry in _lines(folder / "measurements.jsonl")]


def read_configs(folder: Path) -> dict[str, Mapping[str, Any] | str]:
    """Config by model, of ``models.jsonl``, or why it can't be used."""
    return {entry["model"]: _usable(entry) for entry in _lines(folder / "models.jsonl")}


def _usable(entry: Mapping[str, Any]) -> Mapping[str, Any] | str:
    config = entry.get("config")
    if not config:
        return "its config isn't published"
    if entry.get("source") == "memory":
        return "its config was written down from memory"
    if "architectures" in config:
        return dict(config)
    named = str(config.get("_config_class", ""))  # of a constructor call in a program: Qwen3Config(...)
    if not named.endswith("Config"):
        return "only a summary of its config is published"
    family = named.rpartition(".")[2].removesuffix("Config")
    return {**config, "architectures": [f"{family}ForCausalLM"], "model_type": family.lower()}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]

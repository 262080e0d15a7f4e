"""Real load on a server: ``vllm bench serve`` with random prompts, and what the server and its device did under it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from benchmarks.gpu.device import Kind, watched
from dev.server import Server, vllm_command

IMAGE = "{(448, 448, 1): 1.0}"
"""Height, width and frames of the image in each prompt of a vision model, for ``--random-mm-bucket-config``."""
COMPLETED, PREEMPTED = "vllm:request_success_total", "vllm:num_preemptions_total"


@dataclass(frozen=True)
class Load:
    """Requests, all at once.

    Attributes:
        requests: how many.
        input_tokens: of each prompt.
        output_tokens: of each answer.
        seconds: after which the client is cut; what it had asked for is done all the same.
    """

    requests: int
    input_tokens: int
    output_tokens: int
    seconds: float


@dataclass(frozen=True)
class Excess:
    """How a load that no KV cache holds is made.

    Attributes:
        times: the tokens of the KV cache that it asks for.
        most_requests: of it.
        most_input_tokens: of one prompt.
        most_tokens: of all together: making prompts takes the client time.
        output_tokens: of each answer.
        seconds: after which the client is cut.
    """

    times: float
    most_requests: int
    most_input_tokens: int
    most_tokens: int
    output_tokens: int
    seconds: float

    def load(self, kv_tokens: int, context: int) -> Load:
        """For a server with so large a KV cache, and so long a context."""
        longest = min(self.most_input_tokens, context - self.output_tokens - 16)
        wanted = min(self.times * kv_tokens, self.most_tokens)
        requests = max(2, min(self.most_requests, -int(-wanted // (longest + self.output_tokens))))
        return Load(requests, longest, self.output_tokens, self.seconds)


def under(
    load: Load, server: Server, model: str, folder: Path, environ: Mapping[str, str], kind: Kind, images: bool
) -> dict[str, Any]:
    """Put ``load`` on a server. Never raises for what happens to the server: ``alive`` says whether it still answers.

    Args:
        load: which.
        server: that answers.
        model: its folder; the tokenizer is there.
        folder: for the client's log and result.
        environ: the client's.
        kind: of device, to be watched.
        images: whether each prompt has one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    began = time.monotonic()
    before = _counters(server)
    with watched(server, kind) as peaks:
        client = Server(_command(load, server, model, result, images), 0, folder / "client.log", environ)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.process.wait(load.seconds)
            was_cut = client.process.poll() is None
        finally:
            client.stop()
    after = _counters(server)
    told = json.loads(result.read_text()) if result.is_file() else {}
    document = {
        "requests": load.requests,
        "input_tokens": load.input_tokens,
        "output_tokens": load.output_tokens,
        "completed": int(told.get("completed", after[0] - before[0])),
        "cut": was_cut,
        "seconds": round(time.monotonic() - began, 1),
        "tokens_per_second": told.get("total_token_throughput"),
        "preemptions": int(after[1] - before[1]),
        "peak_kv_usage": round(peaks.peak_kv_usage, 4),
        "least_free_bytes": peaks.least_free_bytes,
        "alive": answers(server),
    }
    if not told and not was_cut:
        document["client"] = client.text().splitlines()[-20:]
    return document


def answers(server: Server) -> bool:
    """Whether it completes a prompt."""
    try:
        return bool(server.complete("Hello")["finish_reason"] == "length")
    except (OSError, HTTPException):
        return False


def _counters(server: Server) -> tuple[float, float]:
    try:
        return server.metric(COMPLETED), server.metric(PREEMPTED)
    except (OSError, HTTPException):
        return 0.0, 0.0


def _command(load: Load, server: Server, model: str, result: Path, images: bool) -> list[str]:
    kind = ["--backend", "vllm", "--dataset-name", "random"]
    if images:
        kind = ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--dataset-name", "random-mm"]
        kind += ["--random-mm-base-items-per-request", "1", "--random-mm-bucket-config", IMAGE]
    return vllm_command(
        "bench", "serve", *kind, "--host", "127.0.0.1", "--port", str(server.port), "--model", model,
        "--num-prompts", str(load.requests), "--random-input-len", str(load.input_tokens),
        "--random-output-len", str(load.output_tokens), "--seed", str(load.requests), "--ignore-eos", "--disable-tqdm",
        "--save-result", "--result-dir", str(result.parent), "--result-filename", result.name,
    )  # fmt: skip

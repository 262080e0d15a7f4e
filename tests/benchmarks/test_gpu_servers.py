"""What the proof on a GPU starts: models, servers, co-tenants."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.gpu.device import watched
from benchmarks.gpu.models import entries, make, tiny
from benchmarks.gpu.tenant import tenant
from dev.server import Server
from vllm_autofit.units import GIB

PUBLISHED_BYTES = {
    "qwen3-32b": 65_524_246_528,
    "llama-3.1-8b": 2 * 8_030_261_248,
    "qwen3-30b-a3b": 2 * 30_532_122_624,
    "deepseek-v2-lite": 31_412_968_448,
    "falcon-h1-7b": 2 * 7_585_654_784,
    "nemotron-3-nano-30b": 2 * 31_577_937_344,
    "qwen2.5-vl-7b": 2 * 8_292_166_656,
}
"""Sizes of the checkpoints, as their indices or parameter counts have them."""


# Models


@pytest.mark.parametrize(("name", "size"), PUBLISHED_BYTES.items())
def test_the_models_have_their_published_sizes(name: str, size: int) -> None:
    assert entries()[name].weights_bytes == pytest.approx(size, rel=0.001)


def test_a_model_that_does_not_fit_says_so() -> None:
    large = entries()["qwen3-32b"]
    assert large.unfit(80 * GIB) == ""
    assert large.unfit(24 * GIB) == "61.0 GiB of weights; this device has 24.0 GiB"
    assert tiny().unfit(0) == ""


def test_a_draft_model_is_made_beside_its_model_and_counted(tmp_path: Path) -> None:
    entry = entries()["qwen3-4b-draft"]
    arguments = make(entry, tmp_path)
    speculation = json.loads(arguments[arguments.index("--speculative-config") + 1])
    assert arguments[1:3] == ["--load-format", "dummy"]
    assert json.loads((Path(speculation["model"]) / "config.json").read_text())["hidden_size"] == 1024
    assert entry.weights_bytes > entries()["qwen3-0.6b"].weights_bytes + 7 * GIB


def test_a_vision_model_knows_the_numbers_of_its_special_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    place = Path(make(entries()["qwen2.5-vl-7b"], tmp_path)[0])
    config = json.loads((place / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(place)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}]
    ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
    assert ids[:3] == [config[f"{role}_token_id"] for role in ("vision_start", "image", "vision_end")]
    assert (place / "preprocessor_config.json").is_file()


# Servers and co-tenants


class _Metrics(BaseHTTPRequestHandler):
    """What vLLM's ``/metrics`` looks like."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(
            b"# HELP vllm:request_success_total Count\n"
            b'vllm:request_success_total{finished_reason="stop"} 2.0\n'
            b'vllm:request_success_total{finished_reason="length"} 3.0\n'
            b'vllm:request_success_created{finished_reason="stop"} 1.7e+09\n'
            b"vllm:kv_cache_usage_perc 0.25\n"
        )

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.vllm
def test_a_metric_is_the_sum_over_its_labels(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Metrics) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        server = Server([sys.executable, "-c", ""], listener.server_port, tmp_path / "log", os.environ)
        try:
            assert server.metric("vllm:request_success_total") == 5
            assert server.metric("vllm:kv_cache_usage_perc") == 0.25
            assert server.metric("vllm:num_preemptions_total") == 0
            with watched(server, "cpu") as peaks:
                deadline = time.monotonic() + 60
                while not peaks.peak_kv_usage and time.monotonic() < deadline:
                    time.sleep(0.05)
            assert peaks.peak_kv_usage == 0.25
            assert peaks.least_free_bytes > 0
        finally:
            server.stop()
            listener.shutdown()


def test_a_co_tenant_takes_when_it_is_told_to_and_gives_back() -> None:
    with tenant("cpu", 0.25) as other:
        assert other.gib == 0
        assert other.take() == 0.25
        assert other.take() == 0.25  # once
        process = other._process
    assert process.poll() == 0

"""What vllm-autofit costs: importing and registering, one plan, the estimate of a large model, the command
``vllm-autofit plan``, watching an engine that serves, and a whole start with the plugin and without.

    python -m benchmarks.overhead [--starts N]      (make bench)

Every figure is a median over fresh processes; starts are run in pairs, one with and one without, in turn, and the
ratio is taken pair by pair, so that a machine that slows down doesn't favour either. The table goes into
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.page import measured_on, write_block
from dev.neighbour import GIB, available_and_total
from dev.tiny_model import make_tiny_model

ROOT = Path(__file__).resolve().parent.parent
RUNS = 5
"""Fresh processes per figure."""
COSTS, STARTS = "costs", "starts"
"""The two blocks of the page that this command writes, each with the date of its own measurement."""

REGISTER = """
import time
import vllm.engine.arg_utils, vllm.envs
began = time.perf_counter()
from importlib.metadata import entry_points
(point,) = [each for each in entry_points(group="vllm.general_plugins") if each.name == "vllm_autofit"]
found = time.perf_counter()
point.load()()
print((time.perf_counter() - found) * 1000)
"""
"""What vLLM does with a plugin, where vLLM is loaded already; finding entry points is vLLM's own cost."""

PLAN = """
import time
import vllm.v1.engine
from vllm.engine.arg_utils import EngineArgs
EngineArgs(model={model!r})
import vllm_autofit.hooks.engine_args as seam
spent = []
original = seam._decide
def timed(*args):
    began = time.perf_counter()
    try:
        return original(*args)
    finally:
        spent.append((time.perf_counter() - began) * 1000)
seam._decide = timed
EngineArgs(model={model!r}).create_engine_config()
print(spent[0])
"""

ESTIMATE = """
import json, time
from vllm_autofit.architecture import Tensor
from vllm_autofit.facts.config import model_facts
from vllm_autofit.memory.checkpoint import tensors_from_facts
from vllm_autofit.planning.planner import make_plan
from vllm_autofit.values import DeviceFacts, Lessons, Model, Request, Rules
from vllm_autofit import FIELDS
facts = model_facts(json.loads({config!r}))
tensors = tensors_from_facts(facts)
assert len(tensors) > 1000, len(tensors)
device = DeviceFacts("cuda", 0, "NVIDIA H100 80GB HBM3", 85_000_000_000, int(85_000_000_000 * {free}), 1, True, (9, 0))
request = Request("m", dict.fromkeys(FIELDS) | {{"kv_cache_dtype": "auto"}}, frozenset())
began = time.perf_counter()
make_plan(request, [device], Lessons(), Rules(), model=Model("m", facts, tensors, "folder", True))
print((time.perf_counter() - began) * 1000)
"""

LARGE = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 5120, "intermediate_size": 13824,
    "num_hidden_layers": 96, "num_attention_heads": 40, "num_key_value_heads": 8, "vocab_size": 152064,
    "max_position_embeddings": 32768, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
"""A dense model of more than 1,000 tensors: what it takes is nearly all of the device when all of it is free, and more
than half of it is missing when half is."""

SERVING = """
import json, os, time
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
from types import SimpleNamespace
import wrapt
from vllm import LLM
llm = LLM(model={model!r}, enforce_eager=True, max_model_len=2048, kv_cache_memory_bytes=2**26)
engine = llm.llm_engine.engine_core.engine_core
from vllm_autofit.facts.processes import family_bytes
from vllm_autofit.hooks import engine_end, scheduler
from vllm_autofit.hooks.guard import shield
from vllm_autofit.hooks.runs import record_serving, run_of
from vllm_autofit.hooks.serving import WATCH

class Stand:
    vllm_config, kv_cache_manager = engine.vllm_config, engine.scheduler.kv_cache_manager
    def plain(self, *args): pass
    def request(self, *args): pass
    def step(self, *args): pass
wrapt.wrap_function_wrapper(Stand, "request", shield(scheduler.free_request, ""))
wrapt.wrap_function_wrapper(Stand, "step", shield(engine_end.get_output, ""))

def cost(times, function, *args):
    began = time.perf_counter()
    for _ in range(times):
        function(*args)
    return (time.perf_counter() - began) * 1000 / times

stand, watch, run = Stand(), getattr(engine, WATCH), run_of(engine.vllm_config)
request = SimpleNamespace(num_computed_tokens=9, num_prompt_tokens=9, num_output_tokens=9)
plain = cost(100_000, stand.plain, request)
print(json.dumps({{
    "request": cost(100_000, stand.request, request) - plain,
    "step": cost(100_000, stand.step) - plain,
    "sample": cost(200, watch._figures),
    "write": cost(20, record_serving, run, 0, watch._serving(watch._figures())),
    "own": cost(10, family_bytes, os.getpid()),
}}))
"""
"""Around functions that do nothing, on a real engine's scheduler and record: what is left is our own."""

START = """
import os, time
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
began = time.perf_counter()
from vllm import LLM
if __name__ == "__main__":
    LLM(model={model!r}, enforce_eager=True, gpu_memory_utilization={utilization})
    print((time.perf_counter() - began) * 1000)
"""
"""The same utilisation is set in both, so that both allocate the same KV cache and only our work differs."""


def measure(script: str, environ: dict[str, str]) -> float:
    """Milliseconds that a script prints last, in a fresh process."""
    return float(last_line(script, environ))


def last_line(script: str, environ: dict[str, str]) -> str:
    """What a script prints last, in a fresh process."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(script)
        file.flush()
        done = subprocess.run(
            [sys.executable, file.name], env=environ, capture_output=True, text=True, check=True, timeout=300
        )
    return done.stdout.splitlines()[-1]


def _with_bytecode(place: str) -> dict[str, str]:
    """This environment, with compiled modules as pip makes them when it installs us."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**environ, "PYTHONPYCACHEPREFIX": str(Path(place) / "bytecode")}


def measure_command(environ: dict[str, str], *arguments: str) -> float:
    """Milliseconds that ``vllm-autofit`` takes from its start to its end."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "vllm_autofit", *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    spent = (time.perf_counter() - began) * 1000
    if done.returncode not in (0, 3):
        raise RuntimeError(done.stderr)
    return spent


def main() -> int:
    """Measure, print the tables, and put them into docs/benchmarks.md. Returns an exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--starts", type=int, default=4, help="pairs of whole starts; 0 keeps the last result")
    options = parser.parse_args()
    model = str(make_tiny_model(ROOT / ".cache" / "tiny-model"))
    with tempfile.TemporaryDirectory() as place:
        on = {**_with_bytecode(place), "VLLM_AUTOFIT": "1", "VLLM_AUTOFIT_CACHE_DIR": place}
        off = {**on, "VLLM_AUTOFIT": "0"}
        for script in (REGISTER, PLAN.format(model=model)):  # once, so that there is bytecode
            measure(script, on)
        measure_command(on, "plan", model, "--gpu", "h100")
        disabled = [measure(REGISTER, off) for _ in range(RUNS)]
        enabled = [measure(REGISTER, on) for _ in range(RUNS)]
        plans = [measure(PLAN.format(model=model), on) for _ in range(RUNS)]
        large = json.dumps(LARGE)
        fitting = [measure(ESTIMATE.format(config=large, free=1.0), on) for _ in range(RUNS)]
        failing = [measure(ESTIMATE.format(config=large, free=0.5), on) for _ in range(RUNS)]
        commands = [measure_command(on, "plan", model, "--gpu", "h100") for _ in range(RUNS)]
        serving = [json.loads(last_line(SERVING.format(model=model), on)) for _ in range(RUNS)]
        _write(
            COSTS,
            [
                _row("import and register, VLLM_AUTOFIT=0", disabled, "<= 1"),
                _row("import and register, enabled", enabled, "<= 30"),
                _row("one plan (facts, key, records, plan, log line)", plans, "<= 150"),
                _row("the same without reading, 1,155 tensors, fits", fitting, "<= 50"),
                _row("the same, every concession tried, remedies", failing, "<= 50"),
                _row("the command `vllm-autofit plan FOLDER --gpu h100`", commands, "<= 1000"),
                *_serving(serving),
            ],
        )
        if options.starts:
            available, total = available_and_total()
            utilization = round(min(2.5, available / GIB / 2) * GIB / total, 3)
            start = START.format(model=model, utilization=utilization)
            pairs = [(measure(start, on), measure(start, off)) for _ in range(options.starts)]
            _write(STARTS, _starts(pairs))
    return 0


def _serving(runs: Sequence[dict[str, float]]) -> list[str]:
    rows = {
        "request": ("serving: one request counted as it ends", "<= 0.05"),
        "step": ("serving: one step of an engine in the user's process", "<= 0.01"),
        "sample": ("serving: one sample, every 5 s, in a thread of its own", "<= 5"),
        "write": ("serving: one write of the record, ever less often, in that thread", "<= 50"),
        "own": ("start: one look at what our own processes hold", "<= 100"),
    }
    return [_row(name, [run[part] for run in runs], goal) for part, (name, goal) in rows.items()]


def _starts(pairs: Sequence[tuple[float, float]]) -> list[str]:
    ratios = [with_us / without for with_us, without in pairs]
    return [
        _row("whole start of `LLM(...)`, with", [a for a, _ in pairs], ""),
        _row("whole start of `LLM(...)`, without", [b for _, b in pairs], ""),
        _row("difference, pair by pair", [a - b for a, b in pairs], ""),
        "",
        f"Ratio with / without, pair by pair: median {statistics.median(ratios):.3f}, "
        f"from {min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)} pairs.",
    ]


def _row(name: str, values: Sequence[float], goal: str) -> str:
    figures = " | ".join(_milliseconds(each) for each in (statistics.median(values), min(values), max(values)))
    return f"| {name} | {figures} | {len(values)} | {goal} |"


def _milliseconds(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.4f}"


def _write(block: str, rows: Sequence[str]) -> None:
    """Print a table and replace the block of the page that holds it."""
    table = [
        *measured_on("python -m benchmarks.overhead", "Milliseconds."),
        "| what | median | smallest | largest | runs | goal |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    print("\n".join(table), end="\n\n", flush=True)
    write_block(block, table)


if __name__ == "__main__":
    began = time.monotonic()
    status = main()
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    sys.exit(status)

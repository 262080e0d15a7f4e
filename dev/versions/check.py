"""The checks of one version, with its environment's Python: ``python -m dev.versions.check FOLDER``.

Real starts: a server, the same again, and an ``LLM`` that first fails. What each check found goes to
``FOLDER/found.json`` as soon as it is known: an empty text where all is well, else what was wrong. Run once more, it
goes on with what has not been passed yet.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from dev.provocations import ENGINE_STARTS, Outcome, Provocation, Trouble, provoke
from dev.server import Server, serving, vllm_command
from dev.tiny_model import make_tiny_model

GIB = 2**30
CHECKS = {
    "hooks": "every function that we hook is there and as we know it, or needn't be (as `vllm-autofit doctor` looks)",
    "start": "`vllm serve` starts with what we filled in",
    "completion": "and answers a completion",
    "kept": "what the user set stays, also where it is vLLM's default: `--enforce-eager --max-num-seqs 4 "
    "--kv-cache-dtype auto`",
    "record": "the record of the start has every figure, and a clean end",
    "second": "the same command again is planned from that record",
    "failure": "a start (`LLM`) that fails for memory is recorded with phase and cause",
    "retry": "and is made again at once with other values: it serves",
}
"""What is looked at, in this order."""

NOT_RUN = "not run"

SET = {"max_num_seqs": 4, "enforce_eager": True, "kv_cache_dtype": "auto"}
OPTIONS = ("--enforce-eager", "--max-num-seqs", "4", "--kv-cache-dtype", "auto")
DTYPE = "float32"
"""With bfloat16 the CPU build of 0.16 has no attention for a processor with AMX."""
SHARE_COUNTS_SINCE = 20
"""vLLM 0.20: from here on its CPU backend goes by ``gpu_memory_utilization``. Before, it takes
``VLLM_CPU_KVCACHE_SPACE`` or a share of the host for its KV cache, and looks at nothing that is free."""
START_GIB = 2.5
"""What a start may ask for: filling a KV cache takes time."""
TAKEN_GIB = 4.0
"""What a neighbour takes after the plan, so that what was planned isn't there any more."""
LEFT_GIB = 1.0
COUNTED_SECONDS = 20.0
"""Until a record says what was served: four samples."""
UNWEIGHED = {
    "architectures": ["OrionForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
}
"""A model that vLLM serves and we don't know: nobody foresees that a request of its whole context needs 2 GiB."""


class NotSeenError(Exception):
    """What a check looks for isn't there."""


class Checks:
    """The checks of the vLLM that is installed here.

    Args:
        folder: for the model, the logs and what is found.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model = make_tiny_model(folder / "model")
        self._by_share = int(version("vllm").split(".")[1]) >= SHARE_COUNTS_SINCE
        self._file = folder / "found.json"
        self.found = json.loads(self._file.read_text()) if self._file.exists() else dict.fromkeys(CHECKS, NOT_RUN)
        self._keep()

    def run(self) -> None:
        """All that have not been passed yet."""
        parts = {
            self._hooks: ("hooks",),
            self._first: ("start", "completion", "kept", "record"),
            self._second: ("second",),
            self._failing: ("failure", "retry"),
        }
        for part, names in parts.items():
            if any(self.found[name] for name in names):
                part()

    @contextmanager
    def _check(self, name: str) -> Iterator[None]:
        try:
            yield
            self.found[name] = ""
        except Exception as error:
            self.found[name] = f"{type(error).__name__}: {error}" if not isinstance(error, NotSeenError) else str(error)
        self._keep()

    def _keep(self) -> None:
        self._file.write_text(json.dumps(self.found))

    def _environ(self, records: str, left_gib: float = LEFT_GIB) -> dict[str, str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
        environ |= {"VLLM_AUTOFIT_CACHE_DIR": str(self._folder / records), "VLLM_CPU_CI_ENV": "1"}
        environ["VLLM_AUTOFIT_HEADROOM"] = f"{left_gib:.1f}GiB"
        if not self._by_share:
            environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
        return environ

    def _hooks(self) -> None:
        command = [sys.executable, "-m", "vllm_autofit.hooks.report"]
        done = subprocess.run(
            command, cwd=self._folder, capture_output=True, text=True, env=self._environ("doctor"), check=False
        )
        with self._check("hooks"):
            report = json.loads(done.stdout)
            _expect(report.get("loaded") is True, report.get("error", "the plugin isn't loaded"))
            bad = [seam for seam in report["seams"] if seam["state"] not in ("holds", "absent")]
            _expect(not bad, "; ".join(f"{seam['function']} is {seam['state']} {seam['detail']}" for seam in bad))

    def _first(self) -> None:
        shutil.rmtree(self._folder / "served", ignore_errors=True)
        with self._server("start") as server:
            with self._check("start"):
                self._says(server)
            if self.found["start"]:
                self.found |= dict.fromkeys(("completion", "kept", "record"), "it didn't start")
                self._keep()
                return
            with self._check("completion"):
                _expect(len(server.complete("Hello")["text"]) > 0, "it is empty")
            self._wait_for_counts()
        records = self._records("served")
        with self._check("kept"):
            self._kept(_the(records, "record", 0))
        with self._check("record"):
            self._record(_the(records, "record", 0))

    def _wait_for_counts(self) -> None:
        """What was served is noted every few seconds; some versions kill their engine before it can note the last."""
        deadline = time.monotonic() + COUNTED_SECONDS
        while time.monotonic() < deadline:
            if any("serving" in engine for record in self._records("served") for engine in record["engines"]):
                return
            time.sleep(0.5)

    def _second(self) -> None:
        with self._server("second") as server, self._check("second"):
            earlier = [record["run_id"] for record in self._records("served")]
            said = self._says(server)
            used = any(f"from the record of start {run_id}" in said for run_id in earlier)
            _expect(used, f"it said: {said[-300:]}")

    def _server(self, name: str) -> AbstractContextManager[Server]:
        left = max(LEFT_GIB, psutil.virtual_memory().available / GIB - START_GIB - 1.5)
        command = vllm_command("serve", str(self._model), *OPTIONS, "--dtype", DTYPE)
        return serving(command, self._folder / f"{name}.log", self._environ("served", left))

    def _says(self, server: Server) -> str:
        """What we said of a server that starts."""
        _expect(server.wait(), f"it didn't start: {_last(server.text())}")
        lines = server.lines("vllm-autofit: set ")
        _expect(bool(lines), "nothing was filled in")
        return lines[0]

    def _kept(self, record: dict[str, Any]) -> None:
        engine = _the(record["engines"], "measurements", 0)
        for name, value in SET.items():
            _expect(record["settings"][name] == {"value": value, "chosen_by": "user"}, f"{record['settings'][name]}")
            _expect(name == "kv_cache_dtype" or engine[name] == value, f"{name} became {engine.get(name)}")

    def _record(self, record: dict[str, Any]) -> None:
        engine = _the(record.get("engines", []), "measurements", 0)
        (rank,) = engine["ranks"]
        _expect("error" not in rank, str(rank.get("error")))
        for figure in ("weights_bytes", "kv_cache_bytes"):
            _expect((rank[figure] or 0) > 0, f"{figure} is {rank[figure]}")
        _expect(engine["kv_cache"]["pool_bytes"] == rank["kv_cache_bytes"], "the KV cache has two sizes")
        for moment in ("before", "after"):
            _expect((rank[moment] or {}).get("free_bytes", 0) > 0, f"no free memory {moment}")
        _expect(engine["serving"]["requests"] == 1, f"{engine.get('serving')}")
        ended = record["outcome"].get("ended") or {}
        _expect(ended.get("how") == "clean", f"it ended {record['outcome']}")

    def _failing(self) -> None:
        shutil.rmtree(self._folder / "failing", ignore_errors=True)
        outcome = self._provoked()
        records = self._records("failing")
        with self._check("failure"):
            failure = _the(records, "record of a failed start", 0)["outcome"].get("failure") or {}
            _expect(failure.get("is_capacity") is True and failure.get("phase") != "other", f"recorded: {failure}")
        with self._check("retry"):
            _expect(outcome.attempts == 2, f"{outcome.attempts} attempt(s): {outcome.last_words[:300]}")
            _expect(outcome.served, f"the second attempt failed: {outcome.last_words[:300]}")
            again = _the(records, "second record", 1)
            _expect(again["plan"].get("after_failed") == records[0]["run_id"], "the second doesn't know of the first")

    def _provoked(self) -> Outcome:
        """A start that fails for memory in a way that no plan foresees, and that other values cure."""
        environ = self._environ("failing")
        if self._by_share:
            failing = Provocation(
                "", True, {"enforce_eager": True, "dtype": DTYPE}, Trouble(ENGINE_STARTS, takes_gib=TAKEN_GIB)
            )
            return provoke(failing, "LLM", self._model, self._folder, environ)
        unweighed = self._folder / "unweighed"
        unweighed.mkdir(exist_ok=True)
        for file in self._model.glob("*.json"):
            (unweighed / file.name).write_bytes(file.read_bytes())
        config = json.loads((self._model / "config.json").read_text()) | UNWEIGHED
        (unweighed / "config.json").write_text(json.dumps(config))
        options = {"enforce_eager": True, "load_format": "dummy", "max_num_seqs": 4, "dtype": DTYPE}
        failing = Provocation("", True, options)
        return provoke(failing, "LLM", unweighed, self._folder, environ)

    def _records(self, name: str) -> list[dict[str, Any]]:
        """Oldest first."""
        files = (self._folder / name / "starts").glob("*/*.json")
        return [json.loads(file.read_text()) for file in sorted(files, key=lambda file: file.name)]


def _the(found: list[dict[str, Any]], what: str, index: int) -> dict[str, Any]:
    _expect(len(found) > index, f"there is no {what}")
    return found[index]


def _expect(seen: bool, otherwise: str) -> None:
    if not seen:
        raise NotSeenError(otherwise)


def _last(text: str) -> str:
    """What ended a start, as its log has it: the last error that isn't another's report."""
    errors = re.findall(r"\b\w*(?:Error|Exception): [^\n]{1,300}", text)
    told = [each for each in errors if "Engine core initialization failed" not in each]
    return (told or errors or text.splitlines()[-1:] or ["nothing was said"])[-1]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing started here stays
    Checks(Path(sys.argv[1])).run()

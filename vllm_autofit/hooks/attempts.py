"""The attempts at one start: why one failed, and whether another is worthwhile.

A start that failed for memory, in processes of its own, is planned again from what the failure taught, and made again
with new processes, if that plan differs in the direction that the failure asks for. The last of a failed start is a
line of ours: why it failed, and what to change.

Only one engine on this machine is made again. Data-parallel engines, those behind several API servers, of other nodes,
or under Ray have other processes that wait for them; an engine in the user's own process may have left it a device
context.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Collection
from typing import Any

from vllm_autofit import FIELDS
from vllm_autofit.hooks import aftermath, lease, platform
from vllm_autofit.hooks.channel import close_channel, heard, open_channel
from vllm_autofit.hooks.deadline import of_devices, within
from vllm_autofit.hooks.failures import described, killed, was_killed
from vllm_autofit.hooks.guard import attempt, logger
from vllm_autofit.hooks.lever import Lever, is_there_again, lever, missing_share, turned
from vllm_autofit.hooks.origin import origin_of
from vllm_autofit.hooks.runs import Run, more_telling, record_failed_here, run_of
from vllm_autofit.hooks.saying import end_with, say
from vllm_autofit.render.failure import attempt_line, last_line
from vllm_autofit.settings import read_settings

KV_CACHE_SIZES = ("kv_cache_memory_bytes", "num_gpu_blocks_override", "VLLM_CPU_KVCACHE_SPACE")
"""Settings that give the KV cache a size, whatever share of the device is asked for (vLLM 0.32)."""


class Attempts:
    """The attempts at one start.

    Args:
        wrapped: what makes the engine, of ``instance``, when called with ``args`` and ``kwargs``.
        instance: vLLM's front end of the engine.
        args: its config is the first of them,
        kwargs: or one of them.
    """

    def __init__(
        self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._instance = instance
        self._config = args[0] if args else kwargs["vllm_config"]
        self._run: Run = run_of(self._config) or {}
        self._origin = origin_of(self._run)
        self._only_once = why_only_once(wrapped, args, kwargs, self._config)
        self._left = read_settings().retries
        self._made = 0
        self._since = time.time()
        self._listening: Run | None = None

    def listen(self) -> None:
        """Before an attempt."""
        self._since = time.time()
        open_channel(self._run)
        self._listening = self._run

    def stop_listening(self) -> None:
        """After it."""
        if self._listening is not None:
            close_channel(self._listening)
            self._listening = None

    def prepare_another(self, error: Exception) -> bool:
        """Whether another attempt is worthwhile; then all is ready for it. Else the error ends with a line of ours."""
        if aftermath.is_interrupted():
            return False
        self._made += 1
        told = heard(self._run)
        failure = self._cause(error, told)
        record_failed_here(self._run, failure)
        way = lever(failure, self._device_kind())
        taught = self._will_change(way)
        if way is not None and not self._only_once and self._left > 0 and self._origin is not None:
            aftermath.drop(self._instance, error)
            try:
                aftermath.wait(told, self._free_bytes)
            except BaseException:  # Ctrl-C, or a handler of SIGTERM: nobody else cleans up after this attempt
                aftermath.abandon(told, self._since)
                raise
            attempt(lease.PURPOSE, lease.failed, self._run)
            config = self._origin.config()
            before, after = _values(self._run), _values(run_of(config))
            taught = self._will_do(way, failure, run_of(config))
            if taught:
                logger.warning("vllm-autofit: %s", attempt_line(self._made, failure, before or {}, after or {}))
                aftermath.sweep(told, self._since)
                self._take_over(config)
                return True
        aftermath.end(told)
        aftermath.sweep(told, self._since)
        if failure["is_capacity"] or failure["message"] not in str(error):
            once = self._only_once if way is not None else ""
            end_with(error, last_line(failure, attempts=self._made, taught=taught, only_once=once))
        return False

    def _will_do(self, way: Lever, failure: dict[str, Any], another: Run | None) -> bool:
        """Whether another attempt differs as the failure asks for, or finds now what was missing then."""
        before, after = _values(self._run), _values(another)
        if before is None or after is None or another is None:
            return False
        missing = missing_share(way, failure, self._kv_cache_is_fixed())
        return turned(way, before, after, missing) or is_there_again(failure, another["record"]["plan"].get("budget"))

    def _will_change(self, way: Lever | None) -> bool:
        """Whether a later plan may turn the lever: not what the user set."""
        fields: Collection[str] = {"less": FIELDS[:1], "more": FIELDS, "eager": ("enforce_eager",), None: ()}[way]
        return any(self._run["record"]["settings"][name].get("chosen_by") != "user" for name in fields)

    def _cause(self, error: Exception, told: list[dict[str, Any]]) -> dict[str, Any]:
        """The first that knows of memory, else the first; what the front end sees comes last."""
        cause: dict[str, Any] | None = None
        for each in told:
            if "failure" in each:
                cause = more_telling(cause, each["failure"])
        cause = more_telling(cause, described(error, self._run))
        phases = [each["phase"] for each in told if "phase" in each]
        if cause["phase"] != "other" or not phases:
            return cause
        # What an engine core that was killed left is vLLM's word for it: how far it had come decides what helps.
        return killed(phases[-1]) if was_killed(cause) else {**cause, "phase": phases[-1]}

    def _take_over(self, config: Any) -> None:
        """Everybody who holds the config of the failed attempt holds the new one from now on."""
        self.stop_listening()
        failed = self._run["run_id"]
        vars(self._config).clear()
        vars(self._config).update(vars(config))
        self._run = run_of(self._config) or {}
        self._run["record"]["plan"]["after_failed"] = failed
        attempt(lease.PURPOSE, lease.starting, self._run)
        say(self._run)
        self._left -= 1

    def _kv_cache_is_fixed(self) -> bool:
        settings = self._run["record"]["settings"]
        return any((settings.get(name) or {}).get("chosen_by") == "user" for name in KV_CACHE_SIZES)

    def _device_kind(self) -> str:
        devices = self._run["record"]["identity"].get("devices") or [{}]
        return str(devices[0].get("kind"))

    def _free_bytes(self) -> int:
        assert self._origin is not None
        limit = of_devices(self._device_kind())
        return sum(device.free_bytes for device in within(limit, platform.read_devices, self._origin.engine_args))


def why_only_once(wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], config: Any) -> str:
    """Why an engine can't be made again; empty where it has processes that only this front end starts and waits for."""
    given = inspect.signature(getattr(wrapped, "wrapped", wrapped)).bind(*args, **kwargs)
    given.apply_defaults()
    parallel = config.parallel_config
    if parallel.data_parallel_size > 1:
        return "data-parallel engines wait for each other"
    if given.arguments.get("client_addresses") or given.arguments.get("client_count", 1) > 1:
        return "several API servers wait for the engine"
    if getattr(parallel, "nnodes", 1) > 1:
        return "other nodes wait for the engine"
    if parallel.distributed_executor_backend not in (None, "mp", "uni"):
        return "its workers aren't this command's own processes"
    return "" if given.arguments.get("multiprocess_mode", True) else "the engine lives in this process"


def _values(run: Run | None) -> dict[str, Any] | None:
    """The five fields of a plan; None where there is no plan, or it is refused."""
    if run is None or run.get("refusal"):
        return None
    return {name: run["record"]["settings"][name]["value"] for name in FIELDS}

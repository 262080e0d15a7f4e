"""What captured CUDA graphs take on one rank, and whether vLLM takes it off the KV cache."""

from __future__ import annotations

from vllm_autofit.architecture import ModelFacts
from vllm_autofit.demand import Term
from vllm_autofit.deployment import Deployment, GraphMode
from vllm_autofit.memory.runner import uses_second_runner
from vllm_autofit.units import MIB

SUBTRACTED_SINCE = (0, 20)
"""VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS is on by default in envs.py of 0.20.0 and off in 0.18 and 0.19. vLLM's own
message dates it to 0.21."""

SECOND_RUNNER_ESTIMATES_SINCE = (0, 29)
"""Up to 0.28 the second runner's ``profile_cudagraph_memory`` returns 0, whatever is asked for: its graphs come beside
what vLLM asked for (v1/worker/gpu/model_runner.py, read in the wheels of 0.19 to 0.33)."""

BOTH_KINDS_SINCE = (0, 11)
"""Decode batches are captured whole beside the pieces since 0.11 (config: cudagraph_mode FULL_AND_PIECEWISE)."""

SPACED_SINCE = (0, 12)
"""Sizes above 256 come in steps of 16 since 0.12; before, all steps were of 8."""

DRAFTS_COUNT_SINCE = (0, 13)
"""Drafted tokens make the largest size larger (in 0.16, not in 0.12)."""

BATCH_TOO_SINCE = (0, 23)
"""``max_num_batched_tokens`` is a size too where it is small (in 0.23, not in 0.20)."""

DECODE_SIZES_SINCE = (0, 29)
"""Whole decode batches are sizes too (in 0.29, not in 0.28)."""

LARGEST_INTERACTIVE_SIZE = 32
"""Up to here every size is captured where small batches matter most (config/vllm.py: _set_cudagraph_sizes of 0.19, 0.24
and 0.28 to 0.33)."""

LARGEST_SIZE = 512
LARGEST_SIZE_BLACKWELL = 1024
LARGER_SINCE = (0, 28)
"""Devices of compute capability 10.x since 0.28."""

PIECE_BYTES = round(0.33 * MIB)
"""A captured piece: one layer between two attentions, or a whole batch. Median of published starts of vLLM 0.13 to
0.23 on one device; most are between 0.23 and 0.43."""

TALKING_PIECE_BYTES = round(0.58 * MIB)
"""The same where it holds collectives: 0.60 (Llama 405B, 4 ranks) and 0.64 (Qwen2.5-72B, 4 ranks), the next term in
both."""

PEER_BYTES = 64 * MIB
"""Buffers that capture registers with each further rank: DeepSeek-Coder-V2-Lite took 0.47 GiB for two sizes on 8."""

ERROR = 0.6
"""What vLLM prints is the change of the device's free memory meanwhile: other memory that is given back at that moment
makes it too small, even negative, and then vLLM's own estimate is off in the same way."""


def cuda_graph_bytes(facts: ModelFacts, deployment: Deployment) -> Term:
    """Bytes that capturing takes; 0 without graphs."""
    pieces = captured_pieces(facts, deployment)
    if not pieces:
        return Term(0, why="no CUDA graphs")
    peers = deployment.tensor_parallel - 1
    piece = TALKING_PIECE_BYTES if peers else PIECE_BYTES
    return Term(pieces * piece + peers * PEER_BYTES, ERROR, f"{pieces} captured pieces")


def captured_pieces(facts: ModelFacts, deployment: Deployment) -> int:
    """Graphs that one rank captures: by size, whole batches and the pieces between two attentions."""
    mode, sizes = graph_mode(facts, deployment), capture_sizes(deployment)
    layers = -(-len(facts.layers) // deployment.pipeline_parallel)
    whole = [size for size in sizes if size <= deployment.max_num_seqs * _decode_tokens(deployment)]
    count = len(sizes) * (layers + 1) if mode in ("piecewise", "full_and_piecewise") else 0
    if mode in ("full_decode_only", "full_and_piecewise"):
        count += len(whole)
    return count + (len(sizes) if mode == "full" else 0)


def graphs_come_off(facts: ModelFacts, deployment: Deployment) -> bool:
    """Whether this launch takes its estimate of the graphs off the KV cache."""
    if uses_second_runner(facts, deployment) and deployment.vllm < SECOND_RUNNER_ESTIMATES_SINCE:
        return False
    asked = deployment.estimate_graphs
    return deployment.vllm >= SUBTRACTED_SINCE if asked is None else asked


def graph_mode(facts: ModelFacts, deployment: Deployment) -> GraphMode:
    """What is captured: as asked for, else what this vLLM does (config/vllm.py, and config/__init__.py before 0.12)."""
    if deployment.enforce_eager or deployment.device == "cpu":
        return "none"
    if deployment.graph_mode is not None:
        return deployment.graph_mode
    if facts.encoder_layers and deployment.vllm >= SPACED_SINCE:
        return "full_decode_only"
    both = deployment.vllm >= BOTH_KINDS_SINCE and facts.runner == "generate" and not facts.encoder_layers
    return "full_and_piecewise" if both else "piecewise"


def capture_sizes(deployment: Deployment) -> tuple[int, ...]:
    """Batch sizes in tokens that are captured (config/vllm.py: _set_cudagraph_sizes)."""
    version, decode, tokens = deployment.vllm, _decode_tokens(deployment), deployment.max_num_batched_tokens
    if deployment.graph_sizes is not None:
        return tuple(sorted({size for size in deployment.graph_sizes if size <= tokens}))
    blackwell = version >= LARGER_SINCE and (deployment.compute_capability or (0, 0))[0] == 10
    ceiling = LARGEST_SIZE_BLACKWELL if blackwell else LARGEST_SIZE
    largest = min(deployment.max_num_seqs * 2 * (decode if version >= DRAFTS_COUNT_SINCE else 1), ceiling)
    sizes = set(capture_grid(min(largest, tokens), version))
    if deployment.interactive:
        sizes |= set(range(1, min(largest, tokens, LARGEST_INTERACTIVE_SIZE) + 1))
    if version >= BATCH_TOO_SINCE and tokens <= largest:
        sizes.add(tokens)
    if version >= DECODE_SIZES_SINCE:
        most = min(deployment.max_num_seqs, ceiling)
        requests = {*capture_grid(most, version), most}
        counts = requests if decode > 1 else {deployment.max_num_seqs}
        sizes |= {count * decode for count in counts if count * decode <= min(largest, tokens)}
    return tuple(sorted(sizes))


def capture_grid(largest: int, version: tuple[int, int]) -> list[int]:
    """vLLM's own sizes up to ``largest``."""
    step = 16 if version >= SPACED_SINCE else 8
    sizes = [1, 2, 4, *range(8, min(largest + 1, 256), 8), *range(256, largest + 1, step)]
    return [size for size in sizes if size <= largest]


def _decode_tokens(deployment: Deployment) -> int:
    """Tokens of one sequence in a decode step."""
    return 1 + (deployment.speculation.tokens if deployment.speculation else 0)

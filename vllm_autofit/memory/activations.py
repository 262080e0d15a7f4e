"""What vLLM's profile run holds at its highest on one rank, over the weights.

The run goes through the encoder once, the language model over ``max_num_batched_tokens`` tokens, then the sampler over
``max_num_seqs`` sequences. What peaks is the larger of the last two; what the first left behind, and workspaces that
are never given back, add to both. Each is a count of tensors that are alive at one moment, read in vLLM's source; the
counts reproduce the published measurements without a fitted factor (docs/accuracy.md).
"""

from __future__ import annotations

from vllm_autofit.architecture import Attention, Dense, Experts, Layer, ModelFacts, State, Tower
from vllm_autofit.demand import Term
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.runner import uses_second_runner
from vllm_autofit.units import MIB

LOGIT_BYTES_SORTED = 38
"""vLLM 0.8 to 0.16, CUDA: logits as computed 2, as float32 4, sorted values 4 and indices 8, and inside torch's sort
the unsorted indices 8 and the second buffers of CUB's radix sort 12 (v1/sample/ops/topk_topp_sampler.py:
apply_top_k_top_p). Within 1 % of nine published starts on H100, H200 and 24 GiB devices."""

LOGIT_BYTES = 14
"""vLLM 0.17 and later, CUDA: logits as computed 2, as float32 4, probabilities 4, and 4 for the exponential noise or
for FlashInfer's masked copy (topk_topp_triton.py masks in place; random_sample; flashinfer's
top_k_top_p_sampling_from_logits)."""

LOGIT_BYTES_HOST = 24
"""CPU backend: as computed 2, float32 4, sorted values 4 and indices 8, their softmax 4, two masks 1 each. Counted by
tracking live tensors through vLLM 0.32's apply_top_k_top_p_pytorch."""

LOGIT_BYTES_PLAIN = 2
"""Second model runner up to 0.32: its profile run samples with no request parameters, so the logits stay as computed
(v1/worker/gpu/model_runner.py: _dummy_sampler_run). From 0.33 on it runs all of the sampler: LOGIT_BYTES."""

LOGIT_BYTES_SPECULATION = 4
"""First runner: two rows of random logits per sequence stay alive while the bonus token is sampled
(gpu_model_runner.py: _dummy_sampler_run)."""

COUNTER_BYTES_PER_LOGIT = 4.125
"""Second model runner: counts (int32) and one bit for each sequence and vocabulary entry, allocated at start
(v1/worker/gpu/sample/penalties.py). vLLM counts it since 0.27, where consumed memory replaced the torch peak."""

SORTED_UNTIL = (0, 16)
COUNTERS_COUNTED_SINCE = (0, 27)
SECOND_RUNNER_SAMPLES_FULLY_SINCE = (0, 33)
WORKSPACE_KEPT_SINCE = (0, 13)
"""Experts write into a workspace that is kept (v1/worker/workspace.py); before, into tensors that are freed."""

HIDDEN_COPIES = 4
"""First runner: hidden states alive at the widest point of a layer: the residual before and after, the attention's
output, the normalised input. A published start of Qwen2.5-7B with 8192 tokens took 1.09 GiB; this gives 1.09."""

HIDDEN_COPIES_SECOND_RUNNER = 3
"""Qwen2-VL-2B on vLLM 0.28 took 62, 123 and 246 MiB more for 1024, 2048 and 4096 tokens more; this gives the same."""

CUBLAS_BYTES = {9: 32 * MIB}
CUBLAS_BYTES_OTHERS = 8 * MIB
"""cuBLAS's workspace by major compute capability; torch takes it from its own pool, so it is part of the peak."""

CONTEXT_WORKSPACE_TOKENS = 64 * 1024
"""Most tokens of context that MLA's chunked prefill expands at once (determine_chunked_prefill_workspace_size)."""

MULTIPROCESSORS = 132
"""Of an H100. Rows of the top-k kernel's buffer, which has one per multiprocessor."""

MULTIPROCESSORS_BY_DEVICE = {
    "A100": 108, "A10": 72, "T4": 40, "L4": 58, "L40": 142, "3090": 82, "4090": 128, "5090": 170, "B200": 148,
    "B300": 148, "PRO 6000": 188, "GB10": 48,
}  # fmt: skip
"""NVIDIA's data sheets, by part of the device's name."""

TIMED_KERNELS_SINCE = (0, 15)
"""With an empty compile cache, torch.compile times kernels on arguments that it makes up in their real shapes
(``benchmark_combo_kernel``, config/compilation.py, read in the wheels of 0.15 to 0.33; torch 2.13's
``codegen/triton_combo_kernel.py: get_args``). The largest is the embedding. A published pair of 0.29 printed 0.67 GiB
instead of 0.22 with 0.58 GiB of embedding (m279, m280)."""

PINNED_SINCE = (0, 27)
PINNED_UNTIL = (0, 31)
"""From 0.27 on vLLM counts what the device lost, so blocks that torch keeps count too; since 0.31 large blocks aren't
split while it profiles (v1/worker/gpu_worker.py: _scoped_allocator_max_split, whose comment tells why). Between,
something small is carved out of the freed copy and keeps all of it: 0.53 GiB more consumed in m280, and both copies
explain m326 (0.27.1) to 0.01. A start with two ranks shows nothing of it (m325): it is counted where a rank has the
whole embedding."""

ERROR = 0.08
"""11 of 12 published starts with known settings were within 0.01 (docs/accuracy.md). Wider, because only the sampler is
behind most of them: experts, encoders and the forward pass rest on a few."""


def activation_peak(facts: ModelFacts, deployment: Deployment) -> Term:
    """Bytes above the weights that the profile run reaches on the fullest rank, as far as vLLM takes them off."""
    if deployment.device == "cpu":
        return Term(0, why="the CPU backend takes off what its worker still holds after the profile run")
    forward = forward_bytes(facts, deployment)
    sampler = sampler_bytes(facts, deployment)
    kept = kept_bytes(facts, deployment) + sampler_state_bytes(facts, deployment)
    encoder_peak, encoder_output = encoder_bytes(facts, deployment)
    inside = encoder_output + max(forward, sampler)
    if encoder_peak > inside:
        return Term(kept + encoder_peak, ERROR, "the encoder over its largest batch of items")
    why = (
        f"the sampler over {deployment.max_num_seqs} sequences x {facts.vocabulary} logits"
        if sampler > forward
        else f"the forward pass over {deployment.max_num_batched_tokens} tokens"
    )
    return Term(kept + inside, ERROR, why)


def compiling_bytes(facts: ModelFacts, deployment: Deployment) -> int:
    """What a start with an empty compile cache profiles beyond ``activation_peak``, where the embedding is compiled.

    Several pipeline stages: the first has the embedding, the last what sampling keeps. 0 where nothing is compiled.
    Plans leave it out, since they can't tell whether the cache is empty: a first start gets a KV cache that is smaller
    by so much. Published starts are read with it.
    """
    if deployment.device == "cpu" or deployment.enforce_eager or deployment.vllm < TIMED_KERNELS_SINCE:
        return 0
    copy = facts.vocabulary * facts.hidden_size * deployment.element_bytes // deployment.tensor_parallel
    peak, kept = forward_bytes(facts, deployment), kept_bytes(facts, deployment)
    if deployment.pipeline_parallel == 1:
        peak = max(peak, sampler_bytes(facts, deployment))
        kept += sampler_state_bytes(facts, deployment)
    pinned = deployment.tensor_parallel == 1 and PINNED_SINCE <= deployment.vllm < PINNED_UNTIL
    compiling = kept + max(peak, copy) + (copy if pinned else 0)
    return max(0, compiling - activation_peak(facts, deployment).bytes)


def host_peak_bytes(facts: ModelFacts, deployment: Deployment) -> int:
    """The same peak on the CPU backend, which comes and goes outside of what vLLM asked for."""
    _, encoder_output = encoder_bytes(facts, deployment)
    return encoder_output + max(forward_bytes(facts, deployment), sampler_bytes(facts, deployment))


def sampler_bytes(facts: ModelFacts, deployment: Deployment) -> int:
    """Sampling from ``max_num_seqs`` rows of logits, the hidden states of the forward pass still being held."""
    tokens = deployment.max_num_batched_tokens
    rows = min(deployment.max_num_seqs, tokens)
    hidden = facts.hidden_size * deployment.element_bytes
    if facts.runner == "pooling":
        return tokens * hidden + rows * facts.hidden_size * 4  # pooled in float32
    logits = rows * facts.vocabulary
    return round(tokens * hidden + 2 * rows * hidden + logits * logit_bytes(facts, deployment))


def logit_bytes(facts: ModelFacts, deployment: Deployment) -> float:
    """Bytes that are alive for each logit when the sampler holds the most."""
    version = deployment.vllm
    if deployment.device == "cpu":
        return LOGIT_BYTES_HOST
    if uses_second_runner(facts, deployment):
        return LOGIT_BYTES if version >= SECOND_RUNNER_SAMPLES_FULLY_SINCE else LOGIT_BYTES_PLAIN
    speculation = LOGIT_BYTES_SPECULATION if deployment.speculation else 0
    return speculation + (LOGIT_BYTES_SORTED if version <= SORTED_UNTIL else LOGIT_BYTES)


def kept_bytes(facts: ModelFacts, deployment: Deployment) -> int:
    """What the forward pass allocates and never gives back."""
    major = (deployment.compute_capability or (0, 0))[0]
    total = CUBLAS_BYTES.get(major, CUBLAS_BYTES_OTHERS)
    if deployment.vllm >= WORKSPACE_KEPT_SINCE:
        total += expert_workspace_bytes(facts, deployment)
    return total


def sampler_state_bytes(facts: ModelFacts, deployment: Deployment) -> int:
    """What sampling keeps, on the last pipeline stage."""
    if facts.runner == "pooling":
        return 0
    total, second = 0, uses_second_runner(facts, deployment)
    if second and deployment.vllm >= COUNTERS_COUNTED_SINCE:
        total += round(deployment.max_num_seqs * facts.vocabulary * COUNTER_BYTES_PER_LOGIT)
    if deployment.vllm > SORTED_UNTIL and not (second and deployment.vllm < SECOND_RUNNER_SAMPLES_FULLY_SINCE):
        total += top_k_buffer_bytes(facts, deployment)
    return total


def top_k_buffer_bytes(facts: ModelFacts, deployment: Deployment) -> int:
    """One float32 row of the vocabulary for each program of vLLM's Triton top-k kernel."""
    count = next(
        (n for part, n in MULTIPROCESSORS_BY_DEVICE.items() if part in deployment.device_name), MULTIPROCESSORS
    )
    programs = min(count, deployment.max_num_seqs)
    return min(1 << (programs - 1).bit_length(), count) * facts.vocabulary * 4


def forward_bytes(facts: ModelFacts, deployment: Deployment) -> int:
    """The widest layer over ``max_num_batched_tokens`` tokens."""
    tokens = deployment.max_num_batched_tokens
    copies = HIDDEN_COPIES_SECOND_RUNNER if uses_second_runner(facts, deployment) else HIDDEN_COPIES
    width = copies * facts.hidden_size + max((_layer_width(layer, deployment) for layer in facts.layers), default=0)
    total = tokens * width * deployment.element_bytes
    if deployment.vllm < WORKSPACE_KEPT_SINCE:
        total += expert_workspace_bytes(facts, deployment)
    return max(
        total, tokens * facts.hidden_size * deployment.element_bytes + _context_expansion_bytes(facts, deployment)
    )


def expert_workspace_bytes(facts: ModelFacts, deployment: Deployment) -> int:
    """Both intermediate caches of the fused experts (fused_moe: workspace_shapes of the Triton and Marlin kernels)."""
    return max((_workspace(layer.ffn, facts, deployment) for layer in facts.layers), default=0)


def _workspace(ffn: Dense | Experts | None, facts: ModelFacts, deployment: Deployment) -> int:
    if not isinstance(ffn, Experts):
        return 0
    width = ffn.width if deployment.expert_parallel else -(-ffn.width // deployment.tensor_parallel)
    inside = ffn.latent_size or facts.hidden_size
    first = (2 if ffn.gated else 1) * width
    rows = deployment.max_num_batched_tokens * ffn.per_token
    if deployment.expert_parallel:
        rows *= deployment.data_parallel
    if deployment.vllm < WORKSPACE_KEPT_SINCE:
        return rows * (max(first, inside) + width) * deployment.element_bytes
    return rows * (max(first, inside) + max(width, inside)) * deployment.element_bytes


def _layer_width(layer: Layer, deployment: Deployment) -> int:
    """Elements a token that are alive at the widest point of a layer, beside the hidden states."""
    mixers = max(_mixer_width(mixer, deployment) for mixer in (layer.mixer, layer.parallel, layer.also))
    return max(mixers, _ffn_width(layer.ffn, deployment) + _ffn_width(layer.extra_ffn, deployment))


def _ffn_width(ffn: Dense | Experts | None, deployment: Deployment) -> int:
    """The first projection's output and what the activation makes of it; the experts' own are in the workspace."""
    if ffn is None:
        return 0
    width = ffn.width if isinstance(ffn, Dense) else ffn.shared_width
    return (3 if ffn.gated else 2) * width // deployment.tensor_parallel


def _mixer_width(mixer: Attention | State | None, deployment: Deployment) -> int:
    """The projections' outputs, and as much again for what is computed from them."""
    if mixer is None:
        return 0
    ranks = deployment.tensor_parallel
    if isinstance(mixer, State):
        keys = mixer.key_heads * mixer.key_head_size or mixer.groups * mixer.state_size
        values = mixer.heads * mixer.head_size or mixer.inner_size
        return 2 * (2 * keys + 2 * values) // ranks
    queries = mixer.heads * mixer.head_size * (2 if mixer.output_gate else 1)
    keys = max(mixer.kv_heads, ranks) * (mixer.head_size + mixer.value_head_size)
    return 2 * (queries + keys) // ranks


def _context_expansion_bytes(facts: ModelFacts, deployment: Deployment) -> int:
    """MLA's keys and values expanded from the latent cache; the profile run allocates them to be safe."""
    widest = 0
    for layer in facts.layers:
        if isinstance(layer.mixer, Attention) and layer.mixer.latent is not None:
            width = layer.mixer.latent.nope_head_size + layer.mixer.value_head_size
            widest = max(widest, layer.mixer.heads // deployment.tensor_parallel * width)
    block = deployment.block_size or 64
    rows = max(8 * deployment.max_model_len, 4 * deployment.max_num_seqs * block)
    return min(rows, CONTEXT_WORKSPACE_TOKENS) * widest * deployment.element_bytes


def encoder_bytes(facts: ModelFacts, deployment: Deployment) -> tuple[int, int]:
    """The encoder's own peak, and its output, which is kept while the language model runs."""
    if deployment.text_only:
        return 0, 0
    limits = deployment.items_per_prompt or {}
    towers = [tower for tower in facts.towers if tower.tokens_per_item and limits.get(tower.modality, 1) > 0]
    if not towers:
        return 0, 0
    tower = max(towers, key=lambda tower: tower.tokens_per_item or 0)  # vLLM profiles one modality, the longest
    per_item = tower.tokens_per_item or 0
    per_prompt = max(1, min(limits.get(tower.modality, 999), deployment.max_model_len // per_item))
    items = max(1, min(deployment.max_num_batched_tokens // per_item, deployment.max_num_seqs * per_prompt))
    tokens = items * per_item
    output = tokens * tower.output_size * deployment.element_bytes
    return tokens * tower.merge**2 * _tower_width(tower, deployment) * deployment.element_bytes + output, output


def _tower_width(tower: Tower, deployment: Deployment) -> int:
    """Elements a patch: its pixels (two frames of three colours), hidden states, and the wider half of a layer."""
    pixels = 2 * 3 * tower.patch_size**2
    ffn = (3 if tower.gated else 2) * tower.width // deployment.tensor_parallel
    attention = 7 * tower.hidden_size // deployment.tensor_parallel  # qkv, rotated queries and keys, output
    return pixels + 3 * tower.hidden_size + max(ffn, attention)

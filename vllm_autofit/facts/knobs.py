"""Every field of vLLM's ``EngineArgs`` and ``AsyncEngineArgs``: does memory depend on it, and why.

Memory is that of the devices, and of the host for the processes of the engine: for vLLM's CPU backend the host is the
device. Read in the sources of vLLM 0.11, 0.12, 0.16, 0.20, 0.24, 0.28, 0.30, 0.32 and 0.33. In doubt a field counts:
one too many costs a start that could have learned from another, one too few lets it learn what isn't so. For that
reason a field that no table names counts as well, and ``unknown_fields`` lists it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IN_THE_KEY_ALREADY = (
    "model", "revision",  # as the fingerprint of the content
    "gpu_memory_utilization", "max_model_len", "enforce_eager", "kv_cache_dtype", "max_num_seqs",  # our five
)  # fmt: skip
"""Fields that memory depends on and that are no knobs: the key has them under another name."""

MEMORY: dict[str, str] = {
    "what is loaded: the config, the code and the files that the weights come from": """
        dtype load_format hf_config_path config_format hf_overrides model_class_overrides model_impl model_weights
        ignore_patterns code_revision trust_remote_code task runner convert rope_scaling rope_theta
        override_attention_dtype""",
    "how weights are stored on the device": """
        quantization quantization_config moe_backend linear_backend enable_bf16x3_router_gemm engram_config""",
    "weights moved to host memory, and the buffers they come back through": """
        offload_backend cpu_offload_gb cpu_offload_params offload_group_size offload_num_in_group offload_prefetch_step
        offload_params""",
    "the peak while loading: whole files in host memory, weights on the device before they are repacked": """
        safetensors_load_strategy safetensors_prefetch_num_threads safetensors_prefetch_block_size
        model_loader_extra_config pt_load_map_location enable_ep_weight_filter""",
    "adapter weights, preallocated": """
        enable_lora max_loras max_lora_rank fully_sharded_loras max_cpu_loras lora_dtype lora_target_modules
        lora_extra_vocab_size enable_lora_bias default_mm_loras enable_tower_connector_lora specialize_active_lora
        enable_mixed_moe_lora_format enable_moe_shared_loras max_lora_cls_labels""",
    "a draft's weights, KV cache and buffers": """
        speculative_config spec_method spec_model spec_tokens num_lookahead_slots""",
    "how many ranks share the model, and which part each holds": """
        tensor_parallel_size pipeline_parallel_size prefill_context_parallel_size decode_context_parallel_size
        data_parallel_size data_parallel_size_local nnodes node_rank enable_expert_parallel expert_placement_strategy
        enable_hc_sp enable_batch_sharded_sampling""",
    "which ranks are here: one engine a launch, or all of them (only whether it is set counts)": """
        data_parallel_rank data_parallel_start_rank data_parallel_hybrid_lb data_parallel_external_lb
        data_parallel_multi_port_external_lb""",
    "experts beside the model's own, and the buffers they move through": """
        enable_eplb eplb_config num_redundant_experts eplb_window_size eplb_step_interval eplb_log_balancedness
        enable_elastic_ep elastic_ep_max_dp_size""",
    "buffers that ranks talk through": """
        all2all_backend disable_custom_all_reduce enable_shm_tensor_arena dcp_comm_backend dcp_q_replicate
        dcp_kv_cache_interleave_size cp_kv_cache_interleave_size disable_nccl_for_dp_synchronization enable_dbo
        ubatch_size dbo_decode_token_threshold dbo_prefill_token_threshold enable_fault_tolerance""",
    "processes, and the node whose memory they take": """
        distributed_executor_backend data_parallel_backend _api_process_count renderer_num_workers numa_bind
        numa_bind_nodes numa_bind_cpus""",
    "code of the user's own, which may allocate anything": """
        worker_cls worker_extension_cls scheduler_cls logits_processors io_processor_plugin additional_config""",
    "the size of a step's batch, on which all buffers and the activation peak depend": """
        max_num_batched_tokens max_num_scheduled_tokens max_num_active_seqs enable_chunked_prefill
        max_num_partial_prefills max_long_partial_prefills disable_chunked_mm_input async_scheduling""",
    "the KV cache: its size, layout and groups": """
        block_size kv_cache_memory_bytes num_gpu_blocks_override enable_prefix_caching prefix_cache_retention_interval
        prefix_match_unit disable_sliding_window disable_hybrid_kv_cache_manager kv_cache_dtype_skip_layers
        kv_sharing_fast_prefill swa_bounded_replay calculate_kv_scales swap_space""",
    "recurrent states: their size, and how many are kept": """
        mamba_cache_dtype mamba_ssm_cache_dtype mamba_block_size mamba_cache_mode mamba_config mamba_backend
        mamba_ssu_algorithm enable_mamba_shared_prefix_checkpoint enable_mamba_fine_grained_prefix_cache
        enable_mamba_cache_stochastic_rounding mamba_cache_philox_rounds replayssm_buffer_len use_replayssm""",
    "KV cache and embeddings in host memory, and the buffers of what moves them": """
        kv_offloading_size kv_offloading_backend kv_transfer_config kv_events_config ec_transfer_config
        ec_manager_config weight_transfer_config""",
    "images, audio and video: what is profiled for them, and the encoder": """
        language_model_only limit_mm_per_prompt enable_mm_embeds mm_processor_kwargs media_io_kwargs
        skip_mm_profiling mm_encoder_only mm_encoder_tp_mode mm_encoder_attn_backend mm_encoder_attn_dtype
        mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_path video_pruning_rate video_pruning_method
        mm_device_do_normalize enable_multimodal_encoder_data_parallel""",
    "images, audio and video: caches in host memory, and frames decoded on the device outside the worker": """
        mm_processor_cache_gb mm_processor_cache_type mm_shm_cache_max_object_size_mb disable_mm_preprocessor_cache
        mm_tensor_ipc mm_ipc_gpu_memory_gb mm_processor_device""",
    "kernels: their workspaces, and the form in which they want weights": """
        attention_config attention_backend disable_cascade_attn kernel_config ir_op_priority
        sparse_indexer_topk_backend gdn_prefill_backend kda_prefill_backend kda_decode_backend
        enable_flashinfer_autotune monokernel""",
    "compilation and CUDA graphs": """
        compilation_config cudagraph_capture_sizes cuda_graph_sizes max_cudagraph_capture_size optimization_level
        performance_mode""",
    "what is sampled, pooled or returned beside tokens: tensors of sequences x vocabulary, or of tokens x layers": """
        max_logprobs logprobs_mode use_fp64_gumbel return_sampling_mask enable_trace_replay watermark_config
        diffusion_config enable_prompt_embeds enable_return_routed_experts aux_output_config pooler_config
        override_pooler_config generation_config override_generation_config reasoning_config reasoning_parser""",
    "grammars, compiled and cached in the engine's host memory": """
        structured_outputs_config guided_decoding_backend guided_decoding_disable_fallback
        guided_decoding_disable_any_whitespace guided_decoding_disable_additional_properties""",
    "the tokeniser: tens of MB of host memory, and the placeholders that profiling counts": """
        tokenizer tokenizer_mode tokenizer_revision skip_tokenizer_init""",
    "how the device's memory is mapped, and what is set aside for sleep": """
        enable_sleep_mode sleep_mode_backend sleep_mode_offload_cudagraph sleep_preserve_parameter_names
        enable_cumem_allocator enable_nccl_comm_suspend""",
    "profilers, which keep their traces in memory": "profiler_config ray_workers_use_nsight",
}
"""Reason -> fields."""

NO_MEMORY: dict[str, str] = {
    "names, and who may do what": """
        served_model_name hf_token allowed_local_media_path allowed_media_domains allow_deprecated_quantization
        logits_processor_pattern fail_on_environ_validation""",
    "where files are kept": "download_dir",
    "which of several equal devices, ports or processes; how many and of what kind is counted elsewhere": """
        device_ids master_addr master_port data_parallel_address data_parallel_rpc_port _api_process_rank""",
    "how long to wait": """
        distributed_timeout_seconds cpu_distributed_timeout_seconds shutdown_timeout fault_tolerance_config
        watchdog_config""",
    "random numbers": "seed",
    "the order of requests and who is turned away; a step's batch is bounded elsewhere": """
        scheduling_policy long_prefill_token_threshold long_prefill_token_threshold_adaptive max_num_queued_reqs
        max_num_queued_tokens scheduler_reserve_full_isl prefill_schedule_interval dp_sync_interval watermark
        stream_interval""",
    "how text is put together and taken apart": "interleave_mm_strings reasoning_parser_plugin tokens_only",
    "how cached blocks and media are named (a few bytes each)": "prefix_caching_hash_algo mm_hasher_algorithm",
    "a number that scales are multiplied with": "mm_encoder_fp8_scale_save_margin",
    "without effect: vLLM ignores it with a warning": "max_parallel_loading_workers",
    "logs, metrics and traces": """
        disable_log_stats aggregate_engine_logging enable_log_requests logging_config log_level log_config_file
        show_hidden_metrics_for_version otlp_traces_endpoint collect_detailed_traces per_request_spec_decode_metrics
        kv_cache_metrics kv_cache_metrics_sample custom_histogram_buckets cudagraph_metrics
        enable_layerwise_nvtx_tracing enable_mfu_metrics enable_logging_iteration_details jit_monitor_mode
        jit_monitor_verbose enable_mm_processor_stats use_tqdm_on_load""",
}
"""Reason -> fields."""

WEIGHTS = (
    "dtype", "load_format", "hf_config_path", "config_format", "hf_overrides", "model_class_overrides", "model_impl",
    "model_weights", "runner", "convert", "task", "quantization", "quantization_config", "offload_backend",
    "cpu_offload_gb", "offload_group_size", "enable_lora", "max_loras", "max_lora_rank", "fully_sharded_loras",
    "speculative_config", "language_model_only", "mm_encoder_tp_mode", "tensor_parallel_size",
    "pipeline_parallel_size", "enable_expert_parallel", "enable_eplb", "eplb_config",
)  # fmt: skip
"""Knobs that change or shard the weights: what starts that differ in all else have in common."""

ONLY_WHETHER_SET = frozenset({"data_parallel_rank", "data_parallel_start_rank"})
"""Ranks are alike; that one is started by itself is what counts."""

OPAQUE = (
    "additional_config", "default_mm_loras", "ec_manager_config", "ec_transfer_config", "engram_config",
    "hf_config_path", "hf_overrides", "kv_events_config", "kv_transfer_config", "media_io_kwargs",
    "mm_encoder_fp8_scale_path", "mm_encoder_fp8_scale_save_path", "mm_processor_kwargs",
    "model_loader_extra_config", "model_weights", "override_generation_config", "generation_config",
    "profiler_config", "spec_model", "tokenizer", "watermark_config", "weight_transfer_config",
)  # fmt: skip
"""Fields that may hold anything: credentials of a store, a watermark's key, a path in a user's home. Only a digest of
what the user set leaves the process."""

PARTS_WITHOUT_MEMORY: dict[str, tuple[str, ...]] = {
    "compilation_config": ("cache_dir", "debug_dump_path", "compile_cache_save_format"),
    "ec_transfer_config": ("engine_id", "ec_ip", "ec_port"),
    "eplb_config": ("log_balancedness", "log_balancedness_interval"),
    "kv_events_config": ("endpoint", "replay_endpoint", "topic"),
    "kv_transfer_config": ("engine_id", "kv_ip", "kv_port"),
    "profiler_config": ("torch_profiler_dir", "proton_profiler_dir", "torch_profiler_use_gzip"),
    "speculative_config": ("target_model_config", "target_parallel_config"),
    "structured_outputs_config": ("reasoning_parser", "reasoning_parser_plugin"),
}
"""Parts of a field that memory doesn't depend on. Some differ at every start (vLLM draws ``engine_id`` when the config
is made), others are vLLM's own notes in what the user gave it (``target_model_config``)."""

_NAMED = frozenset(IN_THE_KEY_ALREADY).union(*(names.split() for names in (*MEMORY.values(), *NO_MEMORY.values())))
_IGNORED = frozenset(IN_THE_KEY_ALREADY).union(*(names.split() for names in NO_MEMORY.values()))


def without_memory(name: str) -> bool:
    """Whether a field of that name is no knob: memory doesn't depend on it, or the key has it already."""
    return name in _IGNORED


def unknown_fields(engine_args_class: Any) -> list[str]:
    """Fields of an ``EngineArgs`` class that no table names: its vLLM is newer than this module, or patched."""
    fields: Mapping[str, object] = getattr(engine_args_class, "__dataclass_fields__", {})
    return sorted(fields.keys() - _NAMED)

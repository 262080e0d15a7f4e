"""Families with states beside attention, encoders, and encoder-decoders, and what is particular about each.

Read from the model code of vLLM 0.32 (``model_executor/models``) and the config classes of transformers 5.19.
"""

from __future__ import annotations

from vllm_autofit.facts.families import encoders, hybrids
from vllm_autofit.facts.families.extras import zamba2_extra
from vllm_autofit.facts.families.style import EARLY, LAYER_NORMS, Family

OTHERS: tuple[Family, ...] = (
    Family(
        ("Qwen3NextForCausalLM",),
        ("qwen3_next",),
        hybrids.delta_net,
        query_key_norm=True,
        output_gate=True,
        shared_gate=True,
        assumes={"mtp_num_hidden_layers": 1},  # in every published checkpoint, in no config
    ),
    Family(
        ("Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM"),
        ("qwen3_5_text", "qwen3_5_moe_text"),
        hybrids.delta_net,
        query_key_norm=True,
        output_gate="attn_output_gate",
        shared_gate=True,
        assumes={"attn_output_gate": True},
    ),
    Family(("KimiLinearForCausalLM",), ("kimi_linear",), hybrids.kimi_linear, router_bias=True),
    Family(
        ("MiniMaxM1ForCausalLM", "MiniMaxText01ForCausalLM", "MiniMaxForCausalLM"),
        ("minimax_m1", "minimax_text_01", "minimax"),
        hybrids.minimax_01,
    ),
    Family(
        ("NemotronHForCausalLM", "NemotronHPuzzleForCausalLM"),
        ("nemotron_h", "nemotron_h_puzzle"),
        hybrids.nemotron_h,
        gated=False,
        norms=1,
        router_bias=True,
        positions="none",
    ),
    Family(
        ("JambaForCausalLM", "JambaForSequenceClassification"),
        ("jamba",),
        hybrids.jamba,
        bias=False,
        mlp_bias=False,
        positions="none",
    ),
    Family(("BambaForCausalLM",), ("bamba",), hybrids.granite_hybrid),
    Family(("GraniteMoeHybridForCausalLM",), ("granitemoehybrid",), hybrids.granite_moe_hybrid),
    Family(("FalconH1ForCausalLM",), ("falcon_h1",), hybrids.falcon_h1),
    Family(
        ("Zamba2ForCausalLM",),
        ("zamba2",),
        hybrids.zamba2,
        bias=False,
        mlp_bias="add_bias_linear",
        extra=zamba2_extra,
    ),
    Family(
        ("MambaForCausalLM", "FalconMambaForCausalLM"),
        ("mamba", "falcon_mamba"),
        hybrids.mamba_only,
        norms=1,
        positions="none",
    ),
    Family(("Mamba2ForCausalLM",), ("mamba2",), hybrids.mamba2_only, norms=1, positions="none"),
    Family(
        ("Lfm2ForCausalLM", "Lfm2MoeForCausalLM"),
        ("lfm2", "lfm2_moe"),
        hybrids.lfm2,
        bias=False,
        query_key_norm=True,
        router_bias="use_expert_bias",
    ),
    # Encoders
    Family(("LlamaBidirectionalModel",), ("llama_bidirec",), encoders.encoder, runner="pooling"),
    EARLY(
        ("BertModel", "BertForMaskedLM", "BertForSequenceClassification", "BertForTokenClassification"),
        ("bert",),
        encoders.encoder,
        positions="learned",
        runner="pooling",
        extra=encoders.bert_extra,
        final_norms=0,
    ),
    EARLY(
        (
            "RobertaModel",
            "XLMRobertaModel",
            "RobertaForMaskedLM",
            "RobertaForSequenceClassification",
            "XLMRobertaForSequenceClassification",
            "RobertaForTokenClassification",
            "XLMRobertaForTokenClassification",
        ),
        ("roberta", "xlm-roberta"),
        encoders.encoder,
        positions="learned",
        runner="pooling",
        extra=encoders.bert_extra,
        final_norms=0,
    ),
    Family(
        ("ModernBertModel", "ModernBertForSequenceClassification", "ModernBertForTokenClassification"),
        ("modernbert",),
        encoders.modern_bert,
        runner="pooling",
        extra=encoders.bert_extra,
    ),
    Family(
        ("NomicBertModel",),
        ("nomic_bert",),
        encoders.nomic_bert,
        bias="qkv_proj_bias",
        mlp_bias="mlp_fc1_bias",
        norms=LAYER_NORMS,
        runner="pooling",
        extra=encoders.bert_extra,
        final_norms=0,
    ),
    Family(
        ("GteModel", "GteNewModel", "NewModel", "GteNewForSequenceClassification", "NewForSequenceClassification"),
        ("new", "gte"),
        encoders.encoder,
        bias=True,
        mlp_bias=False,
        norms=LAYER_NORMS,
        runner="pooling",
        extra=encoders.bert_extra,
        final_norms=0,
    ),
    # Encoder-decoders
    EARLY(
        ("WhisperForConditionalGeneration",),
        ("whisper",),
        encoders.encoder_decoder,
        positions="learned",
        extra=encoders.whisper_extra,
    ),
    EARLY(
        ("BartForConditionalGeneration", "MBartForConditionalGeneration"),
        ("bart", "mbart"),
        encoders.encoder_decoder,
        positions="learned",
        position_offset=2,
        extra=encoders.bart_extra,
        final_norms=0,
    ),
    Family(("MllamaForCausalLM",), ("mllama_text_model",), encoders.mllama, bias=False),
)

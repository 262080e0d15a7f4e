"""Models that put encoders for images or sound beside a language model: which, and what language model they mean."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wrapper:
    """One kind of multimodal model."""

    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    text_type: str
    """``model_type`` of the text part where the config doesn't name one."""


_ALL: tuple[Wrapper, ...] = (
    Wrapper(("Qwen2VLForConditionalGeneration",), ("qwen2_vl",), "qwen2_vl_text"),
    Wrapper(("Qwen2_5_VLForConditionalGeneration",), ("qwen2_5_vl",), "qwen2_5_vl_text"),
    Wrapper(("Qwen3VLForConditionalGeneration",), ("qwen3_vl",), "qwen3_vl_text"),
    Wrapper(("Qwen3VLMoeForConditionalGeneration",), ("qwen3_vl_moe",), "qwen3_vl_moe_text"),
    Wrapper(("Qwen3_5ForConditionalGeneration",), ("qwen3_5",), "qwen3_5_text"),
    Wrapper(("Qwen3_5MoeForConditionalGeneration",), ("qwen3_5_moe",), "qwen3_5_moe_text"),
    Wrapper(("Qwen3OmniMoeForConditionalGeneration",), ("qwen3_omni_moe",), "qwen3_omni_moe_text"),
    Wrapper(("Qwen2_5OmniForConditionalGeneration", "Qwen2_5OmniModel"), ("qwen2_5_omni",), "qwen2_5_omni_text"),
    Wrapper(("Qwen2AudioForConditionalGeneration",), ("qwen2_audio",), "qwen2"),
    Wrapper(("Gemma3ForConditionalGeneration",), ("gemma3",), "gemma3_text"),
    Wrapper(("Gemma3nForConditionalGeneration",), ("gemma3n",), "gemma3n_text"),
    Wrapper(("Gemma4ForConditionalGeneration",), ("gemma4",), "gemma4_text"),
    Wrapper(("Gemma4UnifiedForConditionalGeneration",), ("gemma4_unified",), "gemma4_unified_text"),
    Wrapper(("PaliGemmaForConditionalGeneration",), ("paligemma",), "gemma"),
    Wrapper(("Llama4ForConditionalGeneration",), ("llama4",), "llama4_text"),
    Wrapper(("MllamaForConditionalGeneration",), ("mllama",), "mllama_text_model"),
    Wrapper(("Mistral3ForConditionalGeneration",), ("mistral3",), "mistral"),
    Wrapper(("PixtralForConditionalGeneration",), ("pixtral",), "mistral"),
    Wrapper(("KimiK25ForConditionalGeneration",), ("kimi_k25",), "kimi_k2"),
    Wrapper(("KimiVLForConditionalGeneration",), ("kimi_vl",), "deepseek_v3"),
    Wrapper(("MiniMaxM3SparseForConditionalGeneration",), ("minimax_m3_vl",), "minimax_m3_text"),
    Wrapper(("InternVLChatModel",), ("internvl_chat",), "qwen2"),
    Wrapper(("InternVLForConditionalGeneration",), ("internvl",), "qwen2"),
    Wrapper(("LlavaForConditionalGeneration",), ("llava",), "llama"),
    Wrapper(("LlavaNextForConditionalGeneration",), ("llava_next",), "llama"),
    Wrapper(("LlavaNextVideoForConditionalGeneration",), ("llava_next_video",), "llama"),
    Wrapper(("LlavaOnevisionForConditionalGeneration",), ("llava_onevision",), "qwen2"),
    Wrapper(("Idefics3ForConditionalGeneration",), ("idefics3",), "llama"),
    Wrapper(("SmolVLMForConditionalGeneration",), ("smolvlm",), "llama"),
    Wrapper(("MiniCPMV",), ("minicpmv",), "qwen2"),
    Wrapper(("MiniCPMO",), ("minicpmo",), "qwen2"),
    Wrapper(("Phi4MMForCausalLM",), ("phi4mm",), "phi4mm"),
    Wrapper(("Phi3VForCausalLM",), ("phi3_v",), "phi3"),
    Wrapper(("Glm4vForConditionalGeneration",), ("glm4v",), "glm4v_text"),
    Wrapper(("Glm4vMoeForConditionalGeneration",), ("glm4v_moe",), "glm4v_moe_text"),
    Wrapper(("Step3VLForConditionalGeneration",), ("step3_vl",), "step3_text"),
    Wrapper(("Step3p7ForConditionalGeneration",), ("step3p7_vl",), "step3p7"),
    Wrapper(("NemotronH_Nano_VL_V2", "NemotronH_Nano_Omni_Reasoning_V3"), ("NemotronH_Nano_VL_V2",), "nemotron_h"),
    Wrapper(("Ernie4_5_VLMoeForConditionalGeneration",), ("ernie4_5_moe_vl", "ernie4_5_vl_moe"), "ernie4_5_moe"),
    Wrapper(
        ("AyaVisionForConditionalGeneration", "Cohere2VisionForConditionalGeneration"),
        ("aya_vision", "cohere2_vision"),
        "cohere2",
    ),
    Wrapper(("GraniteSpeechForConditionalGeneration",), ("granite_speech",), "granite"),
    Wrapper(("VoxtralForConditionalGeneration",), ("voxtral",), "llama"),
    Wrapper(("UltravoxModel",), ("ultravox",), "llama"),
    Wrapper(("DeepseekVLV2ForCausalLM",), ("deepseek_vl_v2",), "deepseek_v2"),
    Wrapper(("Lfm2VlForConditionalGeneration",), ("lfm2_vl",), "lfm2"),
)

WRAPPERS = {name: wrapper for wrapper in _ALL for name in (*wrapper.architectures, *wrapper.model_types)}

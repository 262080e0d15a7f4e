"""Image encoders: sizes and weights from a vision part, kind by kind.

Counted as transformers 5.19 and vLLM 0.32 build them, from patches to the projector's output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vllm_autofit.architecture import Tower
from vllm_autofit.facts.families.counting import Block, Encoder, layer_norm, linear
from vllm_autofit.facts.families.fields import MOST_LAYERS, Fields, whole_number

QWEN_IMAGE_TOKENS = 16384
"""The largest image that Qwen's VL models take: 12,845,056 pixels at 28 x 28 a token (Qwen2-VL and 2.5-VL), 16,777,216
at 32 x 32 (Qwen3-VL, Qwen3.5): their published preprocessor_config.json."""

Reader = Callable[[Encoder], Tower]


def basics(vision: Fields, text_width: int) -> Tower:
    """What every vision part says, by whatever name; nothing counted yet."""
    width = vision.size("embed_dim", "hidden_size", "vt_hidden_size", "width")
    ratio = vision.number(4, "mlp_ratio")
    return Tower(
        modality="image",
        layers=vision.size("depth", "num_hidden_layers", "vt_num_hidden_layers", "layers", most=MOST_LAYERS),
        hidden_size=width,
        width=vision.maybe("intermediate_size", "vt_intermediate_size") or round(ratio * width),
        heads=vision.size("num_heads", "num_attention_heads", "vt_num_attention_heads", "attention_heads", "heads"),
        output_size=text_width,
        patch_size=side(vision, "patch_size"),
        merge=vision.size_or(1, "spatial_merge_size", least=1),
    )


def side(fields: Fields, *names: str) -> int:
    """A length in pixels or patches; the first of a pair."""
    value = fields.get(*names)
    if isinstance(value, (list, tuple)) and value:
        return Fields({names[0]: value[0]}, {}, fields.where).size(names[0])
    return fields.size_or(0, *names)


def _channels(vision: Fields) -> int:
    return vision.size_or(3, "in_channels", "num_channels", "in_chans", least=1)


def _pixels(vision: Fields, tower: Tower) -> int:
    """Values of one patch."""
    return _channels(vision) * tower.patch_size**2 * vision.size_or(1, "temporal_patch_size", least=1)


def _patches(vision: Fields, tower: Tower) -> int:
    """Of one image of the size that the position table is made for."""
    return (side(vision, "image_size") // max(1, tower.patch_size)) ** 2


def _block(tower: Tower) -> Block:
    return Block(width=tower.hidden_size, inner=tower.width, heads_size=tower.hidden_size)


def _said(seen: Encoder, name: str) -> int:
    """Width handed over: what the file says, else the language model's."""
    return seen.part.size(name) if seen.part.says(name) else seen.text_width


def _with_unread(seen: Encoder, tower: Tower) -> Tower:
    """With the layers after the one whose output is taken: vLLM 0.32 ``models/llava``, ``models/minicpmv``."""
    unread = 0
    if seen.kind.startswith("minicpm"):
        unread = int(seen.host.flag("drop_vision_last_layer"))
    elif seen.kind.startswith("llava"):
        said = seen.host.get("vision_feature_layer")
        usual = -1 if seen.kind == "llava_onevision" else -2
        taken = said if isinstance(said, (list, tuple)) else [usual if said is None else said]
        where = f"{seen.host.where}vision_feature_layer"
        numbers = [whole_number(one, where, -tower.layers - 1, tower.layers) for one in taken]
        unread = min((-1 - one if one < 0 else tower.layers - one for one in numbers), default=0)
    return replace(tower, unread_layers=unread, unread_parameters=unread * _block(tower).parameters)


def generic(seen: Encoder) -> Tower:
    """A vision transformer of an unknown kind, with a projector of two matrices: right to a few per cent."""
    tower = basics(seen.part, seen.text_width)
    merged = tower.hidden_size * tower.merge**2
    projector = linear(merged, seen.text_width) + linear(seen.text_width, seen.text_width)
    body = tower.layers * _block(tower).parameters + linear(_pixels(seen.part, tower), tower.hidden_size)
    positions = _patches(seen.part, tower) * tower.hidden_size
    return replace(tower, parameters=body + positions + projector)


def qwen2_vl(seen: Encoder) -> Tower:
    """Qwen2-VL: no position table; a merger of two matrices; ``hidden_size`` is what it hands over."""
    tower = basics(seen.part, _said(seen, "hidden_size"))
    width, merged = tower.hidden_size, tower.hidden_size * tower.merge**2
    body = tower.layers * _block(tower).parameters + _pixels(seen.part, tower) * width
    merger = layer_norm(width) + linear(merged, merged) + linear(merged, tower.output_size)
    return replace(tower, parameters=body + merger, tokens_per_item=QWEN_IMAGE_TOKENS)


def qwen2_5_vl(seen: Encoder) -> Tower:
    """Qwen2.5-VL: gated blocks, norms without a bias."""
    tower = replace(basics(seen.part, _said(seen, "out_hidden_size")), gated=True)
    width, merged = tower.hidden_size, tower.hidden_size * tower.merge**2
    block = replace(_block(tower), gated=True, plain_norms=True)
    body = tower.layers * block.parameters + _pixels(seen.part, tower) * width
    merger = width + linear(merged, merged) + linear(merged, tower.output_size)
    return replace(tower, parameters=body + merger, tokens_per_item=QWEN_IMAGE_TOKENS)


def qwen3_vl(seen: Encoder) -> Tower:
    """Qwen3-VL, Qwen3.5 and Qwen3-Omni: a position table, and a merger for each level that reaches into the decoder."""
    tower = basics(seen.part, _said(seen, "out_hidden_size"))
    width, merged = tower.hidden_size, tower.hidden_size * tower.merge**2
    body = tower.layers * _block(tower).parameters + linear(_pixels(seen.part, tower), width)
    positions = seen.part.size_or(2304, "num_position_embeddings") * width
    mlp = linear(merged, merged) + linear(merged, tower.output_size)
    levels = len(seen.part.items("deepstack_visual_indexes") or [])
    mergers = layer_norm(width) + mlp + levels * (layer_norm(merged) + mlp)
    return replace(tower, parameters=body + positions + mergers, tokens_per_item=QWEN_IMAGE_TOKENS)


def clip(seen: Encoder) -> Tower:
    """CLIP behind LLaVA's projector."""
    tower = basics(seen.part, seen.text_width)
    width, patches = tower.hidden_size, _patches(seen.part, tower)
    body = tower.layers * _block(tower).parameters + _pixels(seen.part, tower) * width
    around = width + (patches + 1) * width + 2 * layer_norm(width)
    bias = seen.host.flag("multimodal_projector_bias", True)
    projector = linear(width, seen.text_width, bias) + linear(seen.text_width, seen.text_width, bias)
    tokens = patches if seen.kind == "llava" else None
    return _with_unread(seen, replace(tower, parameters=body + around + projector, tokens_per_item=tokens))


def siglip(seen: Encoder) -> Tower:
    """SigLIP, and the projector of whoever uses it."""
    tower = basics(seen.part, seen.text_width)
    width, patches = tower.hidden_size, _patches(seen.part, tower)
    patches = seen.part.size_or(patches, "num_patches")
    body = tower.layers * _block(tower).parameters + linear(_pixels(seen.part, tower), width)
    around = patches * width + layer_norm(width)
    projector, tokens, merge = _siglip_projector(seen, tower, patches)
    return _with_unread(seen, replace(tower, parameters=body + around + projector, tokens_per_item=tokens, merge=merge))


def _siglip_projector(seen: Encoder, tower: Tower, patches: int) -> tuple[int, int | None, int]:
    """Weights, tokens of an image, and patches side by side that become one token."""
    width, text = tower.hidden_size, tower.output_size
    host, kind = seen.host, seen.kind
    if kind.startswith("gemma3"):
        tokens = host.size_or(256, "mm_tokens_per_image", least=1)
        return width * text + width, tokens, max(1, round((patches / tokens) ** 0.5))
    if kind in ("idefics3", "smolvlm"):
        scale = host.size_or(2, "scale_factor", least=1)
        return width * scale**2 * text, None, scale
    if kind == "paligemma":
        return linear(width, text), patches, 1
    if kind == "lfm2_vl":
        factor = host.size_or(2, "downsample_factor", least=1)
        merged, inner = width * factor**2, host.size_or(2560, "projector_hidden_size", least=1)
        bias = host.flag("projector_bias", True)
        norm = layer_norm(merged) if host.flag("projector_use_layernorm", True) else 0
        return norm + linear(merged, inner, bias) + linear(inner, text, bias), None, factor
    if kind.startswith("minicpm"):
        queries = host.size_or(64, "query_num", least=1)
        attention = linear(text, 3 * text) + linear(text, text)
        return queries * text + width * text + attention + 3 * layer_norm(text) + text * text, None, 1
    return linear(width, text) + linear(text, text), None, 1


def minimax_m3(seen: Encoder) -> Tower:
    """MiniMax M3: a norm before the blocks; projected, then merged four to one."""
    tower = basics(seen.part, seen.text_width)
    width, text = tower.hidden_size, seen.text_width
    body = tower.layers * _block(tower).parameters + _pixels(seen.part, tower) * width + layer_norm(width)
    merger = linear(text * tower.merge**2, text) + linear(text, text)
    return replace(tower, parameters=body + linear(width, text) + linear(text, text) + merger)


def pixtral(seen: Encoder) -> Tower:
    """Pixtral's encoder; Mistral 3 merges its patches."""
    tower = replace(basics(seen.part, seen.text_width), gated=True)
    width = tower.hidden_size
    block = replace(_block(tower), gated=True, bias=False, ffn_bias=False, plain_norms=True)
    body = tower.layers * block.parameters + _pixels(seen.part, tower) * width + width
    merge = seen.host.size_or(1, "spatial_merge_size", least=1)
    bias = seen.host.flag("multimodal_projector_bias", "spatial_merge_size" not in seen.host.given)
    projector = linear(width, seen.text_width, bias) + linear(seen.text_width, seen.text_width, bias)
    if merge > 1:
        projector += width + width * merge**2 * width
    rows = side(seen.part, "image_size") // max(1, tower.patch_size) // merge
    return replace(tower, parameters=body + projector, merge=merge, tokens_per_item=rows * (rows + 1) or None)


def llama4(seen: Encoder) -> Tower:
    """Llama 4: a pixel shuffle, two matrices, and one more into the language model."""
    tower = basics(seen.part, seen.text_width)
    width = tower.hidden_size
    body = tower.layers * _block(tower).parameters + _pixels(seen.part, tower) * width
    around = width + (_patches(seen.part, tower) + 1) * width + 2 * layer_norm(width)
    inner, outer = seen.part.size("projector_input_dim"), seen.part.size("projector_output_dim")
    projector = tower.width * inner + inner * outer + seen.part.size("vision_output_dim") * seen.text_width
    return replace(tower, parameters=body + around + projector, merge=2)


def mllama(seen: Encoder) -> Tower:
    """Llama 3.2 Vision: tiles with tables of their own, gated global layers, several levels handed over."""
    tower = basics(seen.part, seen.text_width)
    width, positions = tower.hidden_size, _patches(seen.part, tower) + 1
    block = replace(_block(tower), bias=False)
    global_layers = seen.part.size_or(8, "num_global_layers")
    tiles = seen.part.size_or(4, "max_num_tiles", least=1)
    ratios = len(seen.part.items("supported_aspect_ratios") or [None] * 8) + 1
    body = (tower.layers + global_layers) * block.parameters + 2 * global_layers + _pixels(seen.part, tower) * width
    tables = width + positions * width + 1 + ratios * tiles * positions * width + 2 * (ratios * tiles * width + 1)
    handed = seen.part.size_or(7680, "vision_output_dim", least=1)
    projector = linear(handed, seen.text_width)
    return replace(
        tower,
        layers=tower.layers + global_layers,
        parameters=body + tables + 2 * layer_norm(width) + projector,
        tokens_per_item=tiles * positions,
    )


def internvl(seen: Encoder) -> Tower:
    """InternViT: scaled residuals; four patches become one token."""
    tower = basics(seen.part, seen.text_width)
    width, patches = tower.hidden_size, _patches(seen.part, tower)
    bias = seen.part.flag("qkv_bias", seen.part.flag("attention_bias", True))
    plain = seen.part.text("norm_type") == "rms_norm"
    norm = 2 * width if seen.part.flag("qk_normalization") or seen.part.flag("use_qk_norm") else 0
    missing = 0 if bias else width  # the output projection has a bias either way
    block = replace(_block(tower), bias=bias, plain_norms=plain, extra=2 * width + norm + missing)
    body = tower.layers * block.parameters + linear(_pixels(seen.part, tower), width) + width + (patches + 1) * width
    merged = 4 * width
    projector = layer_norm(merged) + linear(merged, seen.text_width) + linear(seen.text_width, seen.text_width)
    tiles = seen.host.size_or(12, "max_dynamic_patch", least=1)
    return replace(tower, parameters=body + projector, merge=2, tokens_per_item=patches // 4 * (tiles + 1) or None)


def moonvit(seen: Encoder) -> Tower:
    """MoonViT of Kimi-VL and Kimi K2.5."""
    tower = replace(basics(seen.part, seen.text_width), merge=side(seen.part, "merge_kernel_size") or 2)
    width = tower.hidden_size
    rows = seen.part.size_or(64, "init_pos_emb_height", "pos_emb_height")
    columns = seen.part.size_or(64, "init_pos_emb_width", "pos_emb_width")
    body = tower.layers * _block(tower).parameters + linear(_pixels(seen.part, tower), width)
    merged = width * tower.merge**2
    projector = layer_norm(width) + linear(merged, merged) + linear(merged, seen.text_width)
    return replace(tower, parameters=body + rows * columns * width + layer_norm(width) + projector)


def gemma4(seen: Encoder) -> Tower:
    """Gemma 4: gated blocks with four norms, a table for rows and one for columns."""
    tower = replace(
        basics(seen.part, seen.text_width), gated=True, merge=seen.part.size_or(3, "pooling_kernel_size", least=1)
    )
    width = tower.hidden_size
    head_size = seen.part.size_or(width // tower.heads, "head_dim", least=1)
    block = Block(
        width=width,
        inner=tower.width,
        heads_size=tower.heads * head_size,
        gated=True,
        bias=seen.part.flag("attention_bias"),
        ffn_bias=False,
        plain_norms=True,
        norms=4,
        extra=2 * head_size,
    )
    positions = 2 * seen.part.size_or(10240, "position_embedding_size") * width
    standard = 2 * width if seen.part.flag("standardize") else 0
    body = tower.layers * block.parameters + _pixels(seen.part, tower) * width + positions + standard
    tokens = seen.part.maybe("default_output_length", "image_seq_length") or 280
    return replace(tower, parameters=body + width * seen.text_width, tokens_per_item=tokens)


def glm4v(seen: Encoder) -> Tower:
    """GLM-4.1V and 4.5V: gated blocks, a merging convolution, and a gated merger."""
    tower = replace(basics(seen.part, seen.text_width), gated=True)
    width, output = tower.hidden_size, seen.part.size_or(seen.text_width, "out_hidden_size", least=1)
    tower = replace(tower, width=output)  # the blocks are as wide as the output, the merger as the config's figure
    block = replace(_block(tower), gated=True, bias=seen.part.flag("attention_bias"), ffn_bias=False, plain_norms=True)
    body = tower.layers * block.parameters + linear(_pixels(seen.part, tower), width) + 2 * width
    inner = seen.part.size("intermediate_size")
    merger = output * output + layer_norm(output) + 3 * output * inner
    joined = linear(width * tower.merge**2, output)
    return replace(tower, parameters=body + _patches(seen.part, tower) * width + joined + merger)


READERS: dict[str, Reader] = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen2_5_omni": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl,
    "qwen3_5": qwen3_vl,
    "qwen3_5_moe": qwen3_vl,
    "qwen3_omni_moe": qwen3_vl,
    "llava": clip,
    "gemma3": siglip,
    "paligemma": siglip,
    "idefics3": siglip,
    "smolvlm": siglip,
    "minicpmv": siglip,
    "minicpmo": siglip,
    "lfm2_vl": siglip,
    "minimax_m3_vl": minimax_m3,
    "mistral3": pixtral,
    "pixtral": pixtral,
    "llama4": llama4,
    "mllama": mllama,
    "internvl_chat": internvl,
    "internvl": internvl,
    "kimi_vl": moonvit,
    "kimi_k25": moonvit,
    "gemma4": gemma4,
    "glm4v": glm4v,
    "glm4v_moe": glm4v,
}
"""By the ``model_type`` of the whole; where its vision part names another kind, that one counts."""

BY_VISION_TYPE: dict[str, Reader] = {
    "clip_vision_model": clip,
    "siglip_vision_model": siglip,
    "siglip2_vision_model": siglip,
    "pixtral": pixtral,
}

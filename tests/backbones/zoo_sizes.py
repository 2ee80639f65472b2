"""What makes transformers' configurations small: the usual names of sizes, and few exceptions."""

from __future__ import annotations

from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY, IMAGE, FRAMES, MELS, CLASSES = 64, 32, 4, 16, 3

SIZES: dict[str, Any] = {
    # widths
    "hidden_size": 32,
    "embedding_size": 32,
    "entity_emb_size": 16,
    "xpath_unit_hidden_size": 4,
    "word_embed_proj_dim": 32,
    "projection_dim": 32,
    "embed_dim": 8,
    "d_latents": 32,
    "intermediate_size": 64,
    "feed_forward_size": 64,
    "encoder_ffn_dim": 64,
    "ffn_dim": 64,
    "dff": 64,
    "d_ff": 64,
    "d_inner": 64,
    "head_dim": 8,
    "attention_head_size": 8,
    "d_kv": 8,
    "d_head": 8,
    "key_dim": 8,
    "rotary_dim": 4,
    # low ranks
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    # depth and heads
    "num_hidden_layers": 4,
    "num_spatial_layers": 4,
    "depth": 4,
    "num_self_attends_per_block": 4,
    "num_attention_heads": 4,
    "num_self_attention_heads": 4,
    "num_cross_attention_heads": 4,
    "num_key_value_heads": 2,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    # states
    "mamba_d_state": 4,
    "mamba_dt_rank": 4,
    "mamba_headdim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    # text
    "vocab_size": VOCABULARY,
    "entity_vocab_size": VOCABULARY,
    "pronunciation_vocab_size": VOCABULARY,
    "shape_vocab_size": VOCABULARY,
    "num_hash_buckets": VOCABULARY,
    "max_position_embeddings": 64,
    "attention_window": 4,
    "local_attn_chunk_length": 4,
    "lsh_attn_chunk_length": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # images and videos
    "image_size": IMAGE,
    "crop_size": IMAGE,
    "patch_size": 8,
    "num_patches": (IMAGE // 8) ** 2,
    "num_frames": FRAMES,
    "frames_per_clip": FRAMES,
    "window_size": 4,
    "num_groups": 4,
    "groups_width": 8,
    "stem_out_channels": 16,
    "decoder_hidden_size": 32,
    "pred_hidden_size": 32,
    "pred_num_attention_heads": 4,
    "pred_num_hidden_layers": 2,
    "fpn_hidden_size": 32,
    "num_latents": 16,
    "class_expand": 64,
    # sound
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
    "num_codevectors_per_group": 4,
    "codevector_dim": 16,
    "proj_codevector_dim": 16,
    "num_mel_bins": MELS,
    "feature_projection_input_dim": MELS,
    "max_source_positions": 32,
    "max_length": 64,
    # Weights as small as trained ones start from would hide what a layer does.
    "initializer_range": 0.3,
    "init_std": 0.3,
}
"""Name of a size → what it is at most here."""

STAGES: dict[str, tuple[int, ...]] = {
    "depths": (2, 2, 2, 2, 2, 2),
    "depth": (2, 2, 3),
    "block_sizes": (2, 2, 2),
    "blocks_per_stage": (2, 2, 2, 2),
    "hidden_sizes": (16, 32, 32, 48, 64),
    "neck_hidden_sizes": (8, 16, 16, 32, 32, 32, 32),
    "embed_dim": (16, 32, 32),
    "embed_dims": (16, 32, 32, 48),
    "embed_dim_per_stage": (32, 40, 48, 64),
    "base_attn_unit_dims": (32, 32, 32),
    "backbone_channel_list": (64, 48, 40, 32),
    "window_size_per_stage": (8, 4, 2, 1),
    "num_heads": (2, 2, 4, 4, 4, 4),
    "num_attention_heads": (2, 2, 4, 4),
    "stem_channels": (3, 8, 16),
    "stage_in_channels": (16, 16, 32, 32),
    "stage_mid_channels": (8, 8, 16, 16),
    "stage_out_channels": (16, 32, 32, 48),
    "stage_numb_of_layers": (2, 2, 2, 2),
    "conv_dim": (16, 16, 16),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
}
"""Name of a list of sizes → its first values."""

HYBRID = ["linear_attention", "hybrid"] * 2

WORDS: dict[str, dict[str, Any]] = {
    # text
    "bloom": {"n_layer": 4},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 1, 1],
            }
        }
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "lilt": {"hidden_size": 48},
    "markuplm": {"max_depth": 8},
    "mistral4": {"head_dim": 16},
    "neomme": {"head_dim": 16},
    "perceiver": {"d_model": 512},
    "reformer": {
        "attn_layers": ["local", "lsh"] * 2,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [8, 24],
        "hash_seed": 0,
    },
    "sam3_lite_text_text_model": {"pad_token_id": 0},
    "t5gemma": {"is_encoder_decoder": False},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": HYBRID},
    "zamba2": {"layers_block_type": HYBRID},
    # images
    "donut-swin": {"patch_size": 2, "window_size": 2},
    "efficientnet": {"width_coefficient": 0.05, "depth_coefficient": 1.0, "hidden_dim": 64},
    "levit": {"image_size": 64, "patch_size": 16},
    "mobilenet_v1": {"depth_multiplier": 0.0625},
    "mobilenet_v2": {"depth_multiplier": 0.0625},
    "mobilevitv2": {"image_size": 64, "width_multiplier": 0.25},
    "pp_lcnet": {"scale": 0.125},
    "swin": {"patch_size": 2, "window_size": 2},
    "vit_mae": {"mask_ratio": 0.0},
    # videos
    "vivit": {"tubelet_size": [2, 8, 8]},
    "videoprism_vision_model": {"tubelet_size": [1, 8, 8]},
}
"""Model type → what it needs besides, or otherwise."""


def small_config(model_type: str) -> Any:
    """A small configuration of this type."""
    config: Any = CONFIG_MAPPING[model_type]()
    words = WORDS.get(model_type, {})
    return type(config)(**_small(config) | words | {"num_labels": CLASSES})


def _small(config: Any) -> dict[str, Any]:
    """What makes this configuration small, by its own names."""
    known = config.to_dict()
    usual = {own: name for name, own in config.attribute_map.items()}
    small = {}
    for own, value in known.items():
        name = own if own in SIZES.keys() | STAGES.keys() else usual.get(own)
        many = isinstance(value, list | tuple)
        if own in config.sub_configs:
            part = getattr(config, own)
            small[own] = part and _small(part) | {"model_type": part.model_type}
        elif many and name in STAGES:
            small[own] = list(STAGES[name][: len(value)])
        elif name in SIZES:
            size = SIZES[name]
            least = min(size, value) if isinstance(value, int) else size
            small[own] = [size] * len(value) if many else least
    if known.get("num_key_value_heads") == known.get("num_attention_heads") is not None:
        small["num_key_value_heads"] = small["num_attention_heads"]  # some know no groups of heads
    return small

"""The keys of LightX2V's configurations that have no counterpart here, with the reason for each. Free of torch.

They were collected from the files under `configs/` of the repository ModelTC/LightX2V. A star stands for any text.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

DROPPED: Mapping[tuple[str, ...], str] = {
    ("*_cpu_offload", "t5_offload_granularity", "t5_lazy_load", "vae_offload_cache"): (
        "`cpu_offload` is for all parts together; the plan decides how much of each stays on the card"
    ),
    (
        *("offload_ratio*", "use_event_offload", "offload_resident_*", "offload_use_block_slab", "cpu_offload_layout"),
        *("num_disk_workers", "warm_up_cpu_buffers", "clean_cuda_cache", "empty_cache_*", "max_memory", "hybrid_*"),
    ): "the plan follows from `gpu_budget`, and streaming needs no tuning",
    ("shared_cpu_weight*",): "all processes of a node always share one host copy of the weights",
    ("unload_modules",): "weights stay on the host; with `lazy_load` they have no host copy",
    ("parallel", "*_p_size", "seq_parallel", "cfg_parallel", "tensor_parallel", "*_parallel", "device_mesh"): (
        "a stage computes on one GPU; more GPUs serve more requests at once, up to `max_replicas`"
    ),
    (
        *("feature_caching", "coefficients", "use_ret_steps", "teacache_*", "magcache_*", "adacache_*"),
        *("residual_diff_threshold", "downsample_factor", "taylorseer*"),
    ): "every step is computed: skipped blocks change the picture",
    (
        *("*attn*_type", "attn_type", "attn_mode", "*_attn_setting", "sla_*", "sparge*", "radial*", "nbhd*", "svg*"),
        *("attnmap_*", "sparsity_*", "adapter_attn_type", "mm_type", "mm_config", "*_attn_config"),
    ): "attention is exact, by the fastest kernel that torch has for the card",
    ("rope_*", "*_rope", "layer_norm_type", "rms_norm_type", "enable_cuda_graph", "compile_shapes", "nvfp4_*"): (
        "the kernels are torch's, compiled where `compile` says so"
    ),
    (
        *("text_len", "tokenizer_max_length", "text_encoder_out_layers", "text_encoder_dim", "num_layers"),
        *("attention_out_dim", "attention_dim_head", "axes_dims_rope", "num_channels_latents", "in_channels"),
        *("transformer_in_channels", "patch_size", "guidance_embeds", "vae_scale_factor", "vae_stride", "vae_z_dim"),
        *("vae_latents_*", "zero_cond_t", "use_additional_t_cond", "num_train_timesteps", "use_image_encoder", "dim"),
        *("ffn_dim", "num_heads", "freq_dim", "eps", "in_dim", "out_dim", "model_type", "transformer_model_name"),
        *("boundary", "_class_name", "_diffusers_version"),
    ): "the checkpoint's own configurations say this",
    ("prompt_template*", "CONDITION_IMAGE_SIZE", "USE_IMAGE_ID_IN_PROMPT", "VAE_IMAGE_SIZE", "use_en_prompt"): (
        "the family's own template and sizes are built in"
    ),
    ("_auto_resize", "resize_mode", "max_image_area", "max_custom_size", "max_area", "adaptive_resize", "bucket_*"): (
        "a request names its size, or takes that of its first picture"
    ),
    ("aspect_ratio",): "a request says it, as in `size: 16:9`",
    ("denoising_step_list", "boundary_step_index", "distill_method", "num_repeat"): (
        "the schedule follows from the number of steps, the shift and the checkpoint's boundary; a model that was "
        "distilled for a list of timesteps may look different"
    ),
    ("enable_dynamic_cfg", "cfg_scale", "cfg_*"): "the guidance scale is the same in every step",
    ("changing_resolution*", "resolution_rate", "num_fragments", "num_frame_per_block", "num_blocks"): (
        "all steps work on one size and on all frames"
    ),
    ("frame_seq_length", "sf_config", "ar_config"): "autoregressive video is not made here",
    ("use_tiling_vae", "use_vae_tiling", "vae_decode_parallel", "vae_dtype", "vae_type", "trt_vae_config"): (
        "the autoencoder decodes a picture as a whole, and the plan sets its memory aside"
    ),
    ("use_tae", "tae_path", "use_lightvae", "need_scaled"): "only the model's own autoencoder decodes",
    ("text_encoder_type", "lightllm_config"): "the text encoder is a stage of its own here, with its own process",
    ("disagg_*", "sub_servers"): "the stages are always separate processes, which Ray connects",
    ("use_prompt_enhancer", "prompt_enhancer*", "enable_reuse", "use_31_block", "fls"): "there is nothing like it here",
    ("audio_*", "refert_num", "replace_flag", "infer_frames", "motion_frames", "drop_first_motion"): (
        "video of speech or of another video's motion is not served"
    ),
    ("target_height", "target_width"): "a size needs both",
    ("layered", "layers", "resolution", "use_layer3d_rope"): "Qwen-Image-Layered is not served",
    ("inpaint_mask_enabled", "inpaint_blur_*", "task_variant"): "a request decides: it may have a mask or references",
    ("seed", "prompt", "negative_prompt", "image_path", "save_result_path", "i2i_denoise_strength", "strength"): (
        "a request says this (`seed`, `prompt`, `negative_prompt`, `image`, `strength`)"
    ),
    ("batchsize", "num_images_per_prompt"): "a request says this, as `n`",
    ("fps", "target_fps", "video_duration"): "a video has the model's frame rate; a request says how long it is",
    ("lora_dynamic_apply", "lora_path", "strength_model", "lora_dir"): "LoRAs are always applied beside the weights",
    ("use_bfloat16", "do_mm_calib", "cuda_*", "warmup*"): "`dtype` and `compile` decide, and a server warms itself up",
    ("_comment*", "comment*", "_*"): "it is a comment",
    ("config_json", "support_tasks", "metric_port", "host", "port", "nproc*"): "it belongs to LightX2V's own launcher",
    (
        "dit_quantized",
        "dit_quant_scheme",
        "*_quantized",
        "*_quant_scheme",
    ): "nothing is quantised with it",
}

NOTHING: tuple[object, ...] = (None, False, "None", "NoCaching", "Default", [], {})
"""Values that switch something off."""


def reason_to_drop(key: str, value: object) -> str | None:
    """Why `key` has no counterpart; None if nothing is known about it."""
    for patterns, reason in DROPPED.items():
        if any(fnmatchcase(key, pattern) for pattern in patterns):
            return f"it is off; {reason}" if any(value is off or value == off for off in NOTHING) else reason
    return None

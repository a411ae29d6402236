"""Names that other servers and libraries give to the fields of a request."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

SYNONYMS: Mapping[str, str] = MappingProxyType(
    {
        "steps": "num_inference_steps",
        "guidance": "guidance_scale",
        "cfg_scale": "guidance_scale",
        "true_cfg_scale": "guidance_scale",
    }
)
"""Names that are accepted, with the field that each means. `true_cfg_scale` is how Qwen-Image's pipelines call it."""

_MEANT = {
    "guidance_scale": ("cfg", "cfgscale", "guidancescale", "guidance_strength", "text_guidance_scale"),
    "num_inference_steps": ("step", "num_steps", "inference_steps", "sample_steps", "sampling_steps", "infer_steps"),
    "negative_prompt": ("negative", "neg_prompt", "negativeprompt", "n_prompt"),
    "n": ("num_images", "num_images_per_prompt", "num_outputs", "batch_size", "n_iter", "count"),
    "size": ("resolution", "aspect_ratio", "aspectratio", "ratio", "image_size", "dimensions"),
    "seed": ("random_seed", "noise_seed", "rand_seed", "seeds"),
    "strength": ("denoise", "denoising_strength", "denoise_strength", "image_strength", "prompt_strength"),
    "lora_scale": ("lora_weight", "lora_strength"),
    "output_format": ("format", "image_format", "file_format"),
    "prompt": ("text", "caption", "input"),
    "seconds": ("duration", "video_duration", "duration_seconds"),
    "num_frames": ("frames", "frame_count", "n_frames", "video_length"),
    "fps": ("frame_rate", "frames_per_second"),
    "guidance_scale_2": ("true_cfg_scale_2", "cfg_scale_2", "guidance_2"),
}

_SENTENCES = {
    "each model has one sampler, its own": ("sampler", "sampler_name", "sampler_index", "sampling_method", "scheduler"),
    "put its fields into the body itself": ("extra_body", "extra_params", "extra_args", "parameters"),
    "put it into the picture itself": ("markup",),
}

HINTS: Mapping[str, str] = MappingProxyType(
    {name: hint for table in (_MEANT, _SENTENCES) for hint, names in table.items() for name in names}
)
"""Names that are refused, in small letters, with the field that each may mean or a sentence on what to do."""

PICTURE_NAMES = (
    *("image", "images", "mask", "mask_image", "init_image", "init_images", "input_image", "input_images"),
    *("image_url", "image_urls", "image_base64", "reference_image", "reference_images", "reference_url", "first_frame"),
)
"""Names of pictures in places where none is taken under them."""

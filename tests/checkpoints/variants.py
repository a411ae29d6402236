"""The checkpoints that a test of all families runs, each by the name of its fixture."""

from __future__ import annotations

BUDGETS = {
    "distilled": 5_700_000,
    "dev": 5_700_000,
    "z_base": 6_400_000,
    "qwen_image": 5_900_000,
    "edit_2511": 14_900_000,
    "wan": 10_550_000,
    "wan_experts": 10_550_000,
    "wan_i2v": 10_550_000,
    "wan_i2v_experts": 10_550_000,
    "wan_ti2v": 10_550_000,
    "wan_clip": 10_750_000,
}
"""Too few bytes for all of a stage at once."""

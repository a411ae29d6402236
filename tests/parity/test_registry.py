"""What the registry says of every family holds for its components."""

from __future__ import annotations

from pathlib import Path

import torch

from lightx2v.models.component import Component
from lightx2v.models.registry import FOLDERS, find_family


def test_every_folder_that_a_stage_reads_is_downloaded(family: Path) -> None:
    found = find_family(family)
    spec = found.spec(family)
    for stage in found.stages(family):
        component: Component = found.build(stage, family, torch.float32, spec)
        assert set(component.weights.folders) <= set(FOLDERS[stage])
        assert component.spec is spec

"""The encoder's memory against a list of what was asked for, latest last."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightx2v.stages.conditionings import ConditioningCache

SIZES = {"a": 1, "b": 2, "c": 3, "d": 9}


@given(st.lists(st.sampled_from(sorted(SIZES))), st.integers(0, 8))
def test_the_latest_are_known_as_far_as_they_fit(prompts: list[str], limit: int) -> None:
    known, latest = ConditioningCache(limit), list[str]()
    for prompt in prompts:
        made = torch.full((SIZES[prompt],), ord(prompt), dtype=torch.uint8)
        found = known.find(prompt)
        assert (found is not None) == (prompt in latest)
        if found is None:
            known.add(prompt, made)
        else:
            assert torch.equal(found, made)
            latest.remove(prompt)
        latest += [prompt] if SIZES[prompt] <= limit else []
        while sum(SIZES[one] for one in latest) > limit:
            latest.pop(0)

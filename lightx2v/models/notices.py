"""Parts of a request that have no effect. The picture is made without them, and its caller is told. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lightx2v.models.spec import ModelSpec
from lightx2v.types import GenerateRequest

NoticeKind = Literal[
    "prompt_truncated", "negative_prompt_truncated", "negative_prompt_ignored", "guidance_scale_ignored"
]
STRONG_GUIDANCE = 100.0


@dataclass(frozen=True, slots=True)
class Notice:
    """A part of a request that has no effect, by `kind`; `text` is the reason, in ASCII."""

    kind: NoticeKind
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def ignored(request: GenerateRequest, spec: ModelSpec) -> tuple[Notice, ...]:
    """The parts that have no effect on this model, or not at this guidance scale."""
    notices = []
    if request.negative_prompt and not spec.is_guided(request):
        guidable = spec.is_guided(replace(request, guidance=STRONG_GUIDANCE))
        reason = f"guidance_scale {request.guidance:g} is no guidance" if guidable else "this model follows none"
        notices.append(Notice("negative_prompt_ignored", reason))
    if request.guidance != spec.guidance and not spec.follows_guidance:
        notices.append(Notice("guidance_scale_ignored", "this model is distilled and follows none"))
    return tuple(notices)


def may_be_cut(request: GenerateRequest, spec: ModelSpec) -> bool:
    """Whether a prompt may be too long, without its tokenizer. A token is at least one byte, and a template takes less
    than half of the tokens that are read."""
    longest = max(len(prompt.encode()) for prompt in (request.prompt, request.negative_prompt))
    return 2 * longest > spec.prompt_tokens


def truncated(kind: NoticeKind, tokens: int, limit: int) -> tuple[Notice, ...]:
    """The notice of a prompt of `tokens` tokens if only `limit` are read; the tokens of its template count."""
    return (Notice(kind, f"{limit} of {tokens} tokens are read"),) if tokens > limit else ()

"""What `args` of an application's configuration file may say."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from lightx2v.config import EngineSettings


class PerStage(BaseModel):
    """One value per stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encode: float
    denoise: float
    decode: float


class AppSettings(EngineSettings):
    """One model behind one ingress."""

    name: str | None = None
    """The model's id in the API; absent: the last part of `model`."""

    gpu_fractions: PerStage = PerStage(encode=0.2, denoise=0.6, decode=0.2)
    """Ray's bookkeeping of who may share a card. Above a half, no two replicas of a stage do."""

    max_replicas: int = Field(default=4, ge=1)
    """Of each stage; the cards' room may allow fewer."""

    depth_per_replica: float = Field(default=2.0, gt=0)
    """Requests, waiting or running, for which a stage should have a replica."""

    upscale_delay_seconds: float = Field(default=2.0, ge=0)
    downscale_delay_seconds: float = Field(default=15.0, ge=0)

    max_queue: int = Field(default=64, ge=1)
    """Requests inside; one more is answered 503 at once."""

    request_timeout_seconds: float = Field(default=300.0, gt=0)

    @property
    def model_id(self) -> str:
        return self.name or Path(self.model).name

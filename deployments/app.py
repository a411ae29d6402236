"""Builds a Serve application from settings: `serve run configs/flux2.yaml` calls `build` with the file's `args`."""

from __future__ import annotations

import math
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.deployment import Application

from deployments.http.images import MAX_PICTURES
from deployments.http.ingress import Ingress
from deployments.scaling import QueueDepth, gpus
from deployments.serving.served_models import ModelDeployment
from deployments.settings import ApplicationSettings, ModelSettings, parse_application
from deployments.stage.server import StageServer
from lightx2v.checkpoint import read_spec, read_stages
from lightx2v.stages.build import check_loras
from lightx2v.types import StageName

HEALTH_PERIOD_SECONDS = 1.0
"""The longest time until a dead replica is replaced; Serve's own default is 10 s."""


def build(args: dict[str, Any]) -> Application:
    """The application: one ingress, and the stages of each model. Raises InvalidSettings or InvalidCheckpoint."""
    return compose(parse_application(args), StageServer)


def compose(application: ApplicationSettings, server: type[StageServer]) -> Application:
    """The application of parsed settings, with stages of class `server`. No process is started yet.

    Raises InvalidSettings or InvalidCheckpoint.
    """
    models = application.models
    for settings in models:
        read_spec(settings)
        if settings.strict_loras:
            check_loras(settings)
    served = [_serve(settings, server, len(models)) for settings in models]
    ingress = serve.deployment(Ingress).options(
        name="ingress",
        num_replicas=1,  # its memory holds the jobs of `deployments.http.jobs`
        max_ongoing_requests=4 * application.max_queue,
        health_check_period_s=HEALTH_PERIOD_SECONDS,
        graceful_shutdown_timeout_s=application.request_timeout_seconds,
        ray_actor_options={"num_cpus": 0},
    )
    return ingress.bind(served, application.server)


def _serve(settings: ModelSettings, server: type[StageServer], models: int) -> ModelDeployment[Application]:
    """The deployment of one of `models` models. It is warmed up on GPUs, where the first requests are slow."""
    cuda = settings.device == "cuda" or (settings.device == "auto" and gpus() > 0)
    return ModelDeployment(settings, _stages(settings, server, models, cuda), cuda or settings.compiles(cuda))


def _stages(
    settings: ModelSettings, server: type[StageServer], models: int, cuda: bool
) -> dict[StageName, Application]:
    """One model's stage deployments. All `models` of the application divide the cards' fractions."""
    part, suffix = (1 / models if cuda else 0), (f"-{settings.model_id}" if models > 1 else "")
    stages = read_stages(settings)
    most = settings.gpu_fractions.sets_per_card(stages) if cuda else None
    return {
        stage: _stage(stage, f"{stage}{suffix}", settings, server, part * fraction, most)
        for stage, fraction in settings.gpu_fractions.of(stages).items()
    }


def _stage(
    stage: StageName,
    name: str,
    settings: ModelSettings,
    server: type[StageServer],
    fraction: float,
    most: int | None,
) -> Application:
    share = {"num_gpus": math.floor(fraction * 1e4) / 1e4} if fraction else {}  # Ray counts GPUs in 1e-4
    deployment = serve.deployment(server).options(
        name=name,
        # Room for every admitted picture and its encodings: `ready` must not queue behind them.
        max_ongoing_requests=(settings.max_queue + 1) * (MAX_PICTURES + 1),
        autoscaling_config=_autoscaling(settings, most),
        health_check_period_s=HEALTH_PERIOD_SECONDS,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=settings.request_timeout_seconds,
        ray_actor_options={"num_cpus": 0, **share},
    )
    return deployment.bind(stage, settings.model_id, settings, fraction > 0)


def _autoscaling(settings: ModelSettings, most: int | None) -> AutoscalingConfig:
    """Scaling that follows the queue within seconds; Serve's defaults take minutes. `most`: replicas on a GPU."""
    arguments = {"depth_per_replica": settings.depth_per_replica, "most_per_gpu": most}
    policy = AutoscalingPolicy(policy_function=QueueDepth, policy_kwargs=arguments)
    return AutoscalingConfig(
        min_replicas=1,
        max_replicas=settings.max_replicas,
        policy=policy,
        upscale_delay_s=settings.upscale_delay_seconds,
        downscale_delay_s=settings.downscale_delay_seconds,
        look_back_period_s=2.0,
        metrics_interval_s=0.5,
    )

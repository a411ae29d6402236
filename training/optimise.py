"""What both trainings share: a budget of steps or seconds, the learning rate over it, averaged weights, CUDA graphs."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.muon import Muon

WARMUP = 100
WEIGHT_DECAY = 0.01
MUON_RATE = 5.0
"""Muon's learning rate is this multiple of Adam's."""
Key = tuple[int, ...]
Loss = Callable[[Key, tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True, slots=True)
class Budget:
    """Whichever ends first. The learning rate falls from its peak to the fraction `floor` of it."""

    steps: int
    seconds: float
    peak: float = 1e-3
    floor: float = 0.01

    def progress(self) -> Iterator[tuple[int, float]]:
        """The step, and how much of the budget is used, from 0 to 1."""
        start = time.monotonic()
        for step in range(self.steps):
            used = max(step / self.steps, (time.monotonic() - start) / self.seconds)
            if used >= 1:
                return
            yield step, used

    def learning_rate(self, step: int, used: float) -> float:
        fall = 0.5 * (1 + math.cos(math.pi * used))
        return self.peak * min(1, (step + 1) / WARMUP) * (self.floor + (1 - self.floor) * fall)


def cast_parameters(network: nn.Module, dtype: torch.dtype) -> None:
    """Leaves the buffers, among them the frequencies of the rotary embedding, as they are."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)


class Trainer:
    """Optimises fp32 masters of the networks' weights; on a GPU the networks themselves compute in bf16.

    decay: of the average. muon: the weights that Muon takes, by object; Adam takes all others.
    """

    def __init__(
        self, networks: list[nn.Module], budget: Budget, decay: float, muon: Collection[nn.Parameter] = ()
    ) -> None:
        self.averaged = [copy.deepcopy(network).eval().requires_grad_(False) for network in networks]
        self._average: list[Tensor] = [p for network in self.averaged for p in network.parameters()]
        self._working = [p for network in networks for p in network.parameters()]
        self._master = [p.detach().clone() for p in self._working]
        self._budget, self._decay = budget, decay
        cuda = self._working[0].is_cuda
        for network in networks:
            cast_parameters(network, torch.bfloat16 if cuda else torch.float32)
        for working, master in zip(self._working, self._master, strict=True):
            working.grad, master.grad = torch.zeros_like(working), torch.zeros_like(master)
        chosen = {id(parameter) for parameter in muon}
        pairs = list(zip(self._working, self._master, strict=True))
        self._muon = Muon([master for working, master in pairs if id(working) in chosen], WEIGHT_DECAY)
        self._rest = [master for working, master in pairs if id(working) not in chosen]
        self._adam = torch.optim.AdamW(self._rest, betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY, fused=cuda)

    @property
    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self._working if p.grad is not None]

    @torch.no_grad()
    def step(self, step: int, used: float) -> None:
        """Applies the gradients that lie in the networks."""
        rate = self._budget.learning_rate(step, used)
        for group in self._adam.param_groups:
            group["lr"] = rate
        torch._foreach_copy_([p.grad for p in self._master if p.grad is not None], self.gradients)
        nn.utils.clip_grad_norm_(self._rest, 1.0, foreach=True)
        self._adam.step()
        self._muon.step(MUON_RATE * rate)
        torch._foreach_copy_([p.data for p in self._working], self._master)
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, self._master, 1 - decay)


class Gradients:
    """Computes a loss and its gradients. On a GPU as one CUDA graph for each key: thousands of kernels, one launch."""

    def __init__(self, loss: Loss, trainer: Trainer) -> None:
        self._loss, self._gradients = loss, trainer.gradients
        self._graphs: dict[Key, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]] = {}

    def __call__(self, key: Key, inputs: tuple[Tensor, ...]) -> Tensor:
        if not self._gradients[0].is_cuda:
            return self._run(key, inputs)
        if key not in self._graphs:
            self._graphs[key] = self._capture(key, inputs)
        graph, static, loss = self._graphs[key]
        for into, value in zip(static, inputs, strict=True):
            into.copy_(value, non_blocking=True)
        graph.replay()
        return loss.clone()

    def _run(self, key: Key, inputs: tuple[Tensor, ...]) -> Tensor:
        torch._foreach_zero_(self._gradients)
        loss = self._loss(key, inputs)
        loss.backward()
        return loss.detach()

    def _capture(self, key: Key, inputs: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]:
        static = tuple(value.to(self._gradients[0].device, copy=True) for value in inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._run(key, static)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        pool = next((known.pool() for known, _, _ in self._graphs.values()), None)
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            loss = self._run(key, static)
        return graph, static, loss

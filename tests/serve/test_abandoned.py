"""Many clients that hang up: no work goes on for them, and the next request is served as if they had never come."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx

from benchmarks.server import Server

PROMPT = "a red circle left of a blue square on white"
STORM, CLIENTS = 60, 20


def test_a_storm_of_clients_that_hang_up(server: Server) -> None:
    before = server.generate(PROMPT, seed=7).json()["data"]

    def hang_up(seed: int) -> bool:
        fields = {"prompt": PROMPT, "seed": seed, "num_inference_steps": 100}
        try:
            answer = httpx.post(
                f"{server.url}/v1/images/generations", json=fields, timeout=httpx.Timeout(60.0, read=0.2)
            )
        except httpx.ReadTimeout:
            return True
        assert answer.status_code == 503, answer.text
        return False

    with ThreadPoolExecutor(CLIENTS) as clients:
        assert any(clients.map(hang_up, range(STORM)))
    server.rest()
    assert server.generate(PROMPT, seed=7).json()["data"] == before

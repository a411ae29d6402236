"""Of a hub repository only small files and the headers of weights are downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors import safe_open
from safetensors.torch import save_file

from lightx2v.commands.headers import download_headers, with_headers
from lightx2v.config import EngineSettings
from lightx2v.errors import InvalidCheckpoint
from lightx2v.weights.index import read_header
from tests.checkpoints.hub import serving

WEIGHTS = 4 << 20


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Weights in a folder that is read, and in one that is not."""
    folder = tmp_path / "published"
    for name in ("transformer", "other"):
        (folder / name).mkdir(parents=True)
        tensors = {"a": torch.zeros(WEIGHTS // 2, dtype=torch.bfloat16), "b": torch.zeros(3, 2)}
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text("{}")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "merges.txt").write_text("a b")
    (folder / "model_index.json").write_text("{}")
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_headers_are_the_published_ones(repository: Path, tmp_path: Path, offline: None) -> None:
    with serving("owner/model", repository) as hub:
        download_headers("owner/model", tmp_path / "made", HfApi(endpoint=hub.endpoint))
        assert 0 < hub.weight_bytes < WEIGHTS // 8
    file = Path("transformer") / "model.safetensors"
    made, published = read_header(tmp_path / "made" / file), read_header(repository / file)
    assert [(name, ref.dtype, ref.shape) for name, ref in made.items()] == [
        (name, ref.dtype, ref.shape) for name, ref in published.items()
    ]
    with safe_open(tmp_path / "made" / file, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_small_files_come_as_they_are_and_other_weights_do_not(repository: Path, tmp_path: Path, offline: None) -> None:
    made = tmp_path / "made"
    with serving("owner/model", repository) as hub:
        download_headers("owner/model", made, HfApi(endpoint=hub.endpoint))
    assert (made / "tokenizer" / "merges.txt").read_text() == "a b"
    assert (made / "model_index.json").is_file()
    assert not (made / "other" / "model.safetensors").exists()
    assert sum(path.stat().st_blocks * 512 for path in made.rglob("*.safetensors")) < WEIGHTS // 8, "it is sparse"


def test_a_repository_that_is_not_there(repository: Path, tmp_path: Path, offline: None) -> None:
    with (
        serving("owner/model", repository) as hub,
        pytest.raises(InvalidCheckpoint, match=r"owner/other: neither a folder here nor a repository"),
    ):
        download_headers("owner/other", tmp_path / "made", HfApi(endpoint=hub.endpoint))


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    settings = EngineSettings(model=str(tmp_path))
    with with_headers(settings) as same:
        assert same is settings

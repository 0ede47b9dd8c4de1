"""One exported model, one archive and one running server for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tutorial_lib import TorchServe, build_archive, export_model

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model("embedded", tmp_path_factory.mktemp("model") / "my_model")


@pytest.fixture(scope="session")
def mar(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_archive(
        "BERTweetSentimentAnalysis",
        handler=ROOT / "handler.py",
        model_dir=model_dir,
        extra_files=[ROOT / "index_to_name.json"],
        config_file=ROOT / "model-config.yaml",
        export_path=tmp_path_factory.mktemp("store"),
    )


@pytest.fixture(scope="session")
def server(mar: Path) -> Iterator[TorchServe]:
    with TorchServe(models={"my_model": mar}, model_api=True) as running:
        yield running

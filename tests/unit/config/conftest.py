"""The recipe of the loader's tests."""

from pathlib import Path

import pytest

from tests.unit.config.test_config_load import BASE, STAGE


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """base.yaml and stage.yaml in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)
    Path("stage.yaml").write_text(STAGE)
    return [Path("base.yaml"), Path("stage.yaml")]

"""Before a run begins: an input and its output are apart, and what was made with other settings is named."""

import pytest

from data_pipelines import prepare
from janus_dist.errors import ConfigError
from tests.alone import work_on


@pytest.mark.parametrize(
    "path",
    ["data/understanding", "data/understanding/*.tar", "data/understanding/raw/a.tar", "data", ".", "data/*/*.tar",
     "**/*.tar", "link", "data/../data/understanding/", "dat?/under*"],
)  # fmt: skip
def test_a_source_in_the_folder_of_its_shards_is_refused_before_anything_starts(tmp_path, monkeypatch, path):
    """The end of a run removes shards that do not count: a source there could be taken for such."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    of = work_on("understanding", path, "data", form="webdataset")
    with pytest.raises(ConfigError) as caught:
        prepare.prepare_data(of.recipe)
    assert "pipeline.inputs.understanding.path=" in caught.value.message and path.strip("./") in caught.value.message
    assert f"the folder of its shards, {tmp_path}/data/understanding, are not apart" in caught.value.message
    assert "data.root/NAME" in (caught.value.hint or "") and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("path", "root"),
    [("in", "data"), ("data/*.tar", "data"), ("data/understanding-raw", "data"), ("data/under", "data"),
     ("data/text/*.tar", "data"), ("s3://bucket/data", "data"), ("s3://bucket/in", "s3://bucket/data")],
)  # fmt: skip
def test_a_source_beside_its_shards_is_not(tmp_path, monkeypatch, path, root):
    monkeypatch.chdir(tmp_path)
    prepare.check_apart([work_on("understanding", path, root, form="webdataset")])


@pytest.mark.parametrize("path", ["s3://bucket/data", "s3://bucket/data/understanding/*.tar", "s3a://bucket/*"])
def test_a_source_in_a_store_is_compared_too(path):
    with pytest.raises(ConfigError, match="are not apart"):
        prepare.check_apart([work_on("understanding", path, "s3://bucket/data", form="webdataset")])

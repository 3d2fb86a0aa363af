"""What a user of `janus ckpt` sees: the output of every command, refusals, exit codes; on a disk and in a store."""

import json

import pytest

from janus_dist.checkpoint import commits
from janus_dist.checkpoint.commits import Commit
from janus_dist.cli.main import app
from janus_dist.errors import JanusError
from janus_dist.storage import fs
from tests import prepared
from tests.moto_s3 import moto_bucket


@pytest.fixture
def janus(capsys):
    """Run `janus ckpt ARGUMENTS`: exit code, stdout, and the message of an error."""

    def run(*arguments):
        code, message = 0, ""
        try:
            app(["ckpt", *arguments], standalone_mode=False)
        except JanusError as error:
            code, message = error.exit_code, error.message
        return code, capsys.readouterr().out, message

    return run


def write(folder: str, step: int, recipe: dict) -> str:
    """A checkpoint of two small files."""
    path = commits.folder(folder, step)
    for rank in range(2):
        fs.write_whole(f"{path}/__{rank}_0.distcp", bytes([rank]) * 600_000)
    described = {f"__{rank}_0.distcp": commits.describe(f"{path}/__{rank}_0.distcp") for rank in range(2)}
    commits.write_marker(
        path,
        Commit(
            version=commits.VERSION,
            step=step,
            plan_digest="0123456789abcdef",
            plan={},
            cursors={"photos": {}, "books": {}},
            recipe=recipe,
            world=2,
            optimizer_steps=step,
            tokens=step * 1000,
            losses=[],
            left_out=[[4, 7]] if step == 30 else [],
            shapes={"a.weight": [10, 20], "b.weight": [5]},
            trainable=["a.weight"],
            files=described,
        ),
    )
    return path


@pytest.fixture(params=["disk", "store"])
def folder(request, tmp_path, monkeypatch):
    """Checkpoints of steps 10, 20 and 30, of which 20 is cut; 40 was being written, 50 is set aside."""
    recipe = prepared.recipe(tmp_path, tmp_path).model_dump(mode="json")

    def filled(root: str) -> str:
        saved = f"{root}/run"
        for step in (10, 20, 30, 40, 50):
            write(saved, step, recipe)
        fs.write_whole(f"{commits.folder(saved, 20)}/__1_0.distcp", b"short")
        fs.remove(f"{commits.folder(saved, 40)}/{commits.MARKER}")
        fifty = commits.folder(saved, 50)
        fs.rename(f"{fifty}/{commits.MARKER}", f"{fifty}/{commits.ASIDE_MARKER}")
        return saved

    if request.param == "disk":
        yield filled(str(tmp_path))
        return
    with moto_bucket(monkeypatch, "runs") as bucket:
        yield filled(bucket)


def test_list(folder, janus):
    code, out, _ = janus("list", folder)
    assert code == 0
    assert out.splitlines() == [
        folder,
        "  step        10  whole               1.2MB  2 ranks  10k tokens",
        "  step        20  damaged             1.2MB  2 ranks  20k tokens",
        "  step        30  whole               1.2MB  2 ranks  30k tokens",
        "  step        40  not committed",
        "  step        50  set aside",
    ]
    found = json.loads(janus("list", folder, "--json")[1])
    assert [one["state"] for one in found["checkpoints"]] == [
        "whole", "damaged", "whole", "not committed", "set aside",
    ]  # fmt: skip
    assert found["checkpoints"][0]["path"] == commits.folder(folder, 10)


def test_list_leaves_out_what_a_user_copied(folder, janus):
    """A copy of a checkpoint under a name of its own is no checkpoint of the run, and nothing that prune may delete."""
    marker = fs.read(f"{commits.folder(folder, 10)}/{commits.MARKER}")
    fs.write_whole(f"{folder}/step-00000010-good/{commits.MARKER}", marker)
    assert commits.step_of(f"{folder}/step-00000010-good") == 10, "named by hand it is one"
    assert [line.split()[1] for line in janus("list", folder)[1].splitlines()[1:]] == ["10", "20", "30", "40", "50"]
    janus("prune", folder, "--keep", "1")
    assert fs.names(f"{folder}/step-00000010-good") == [commits.MARKER]


def test_prune_bears_another_one_beside_it(folder, janus, monkeypatch):
    """Two commands delete the same: what is gone already is no fault."""
    listed = fs.sizes

    def gone_meanwhile(path):
        found = listed(path)
        if str(path) == commits.folder(folder, 10) and commits.MARKER in found:
            fs.remove_folder(path)
        return found

    monkeypatch.setattr(fs, "sizes", gone_meanwhile)
    assert janus("prune", folder, "--keep", "1")[0] == 0
    assert [commits.step_of(path) for path in commits.folders(folder)] == [30, 40, 50]


def test_verify(folder, janus):
    code, out, message = janus("verify", folder)
    assert (code, message) == (4, "1 of 3 checkpoints are damaged")
    lines = out.splitlines()
    assert lines[0] == f"{commits.folder(folder, 10)}: whole, 1.2MB in 2 files"
    assert lines[1].startswith(
        f"{commits.folder(folder, 20)}: {commits.folder(folder, 20)}/__1_0.distcp is damaged: 5 "
    )
    assert janus("verify", commits.folder(folder, 30))[0] == 0


def test_show(folder, janus):
    code, out, _ = janus("show", folder)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == commits.folder(folder, 30)
    assert "  tokens      30,000" in lines
    assert "  parameters  205, of which 200 are trained" in lines
    assert "  sources     books, photos" in lines
    assert "  left out    steps 4 to 6 of the plan" in lines
    assert "  files       2, 1,200,000 bytes" in lines
    assert json.loads(janus("show", commits.folder(folder, 10), "--json")[1])["step"] == 10


def test_prune(folder, janus):
    gone = [commits.folder(folder, step) for step in (10, 20)]
    code, out, _ = janus("prune", folder, "--keep", "1", "--dry-run")
    assert code == 0
    assert out.splitlines() == [*(f"would delete {path}" for path in gone), "2 whole checkpoints exist"]
    code, out, _ = janus("prune", folder, "--keep", "1", "--every", "10")
    assert out.splitlines() == [f"deleted {gone[1]}", "2 whole checkpoints remain"]
    janus("prune", folder, "--keep", "1")
    assert [commits.step_of(path) for path in commits.folders(folder)] == [30, 40, 50], "what is newer stays"


def test_where_there_is_none(tmp_path, janus):
    for command in ("list", "verify", "show"):
        code, _, message = janus(command, str(tmp_path / "nowhere"))
        assert code == 4 and message.endswith(f"checkpoint under {tmp_path / 'nowhere'}")

"""`janus sample`: what is asked, what is written, following a run, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from janus_dist.checkpoint import commits
from janus_dist.checkpoint.find import find, recipe_of
from janus_dist.cli.main import app
from janus_dist.config.load import Loaded, save
from janus_dist.config.recipe import StageRecipe
from janus_dist.data.tokenizer import load_tokenizer, train_tokenizer
from janus_dist.errors import CheckpointError, ConfigError, DataError
from janus_dist.evaluation import samples
from janus_dist.evaluation.prompts import UserPrompt, read_prompts
from janus_dist.evaluation.sampler import Sampler
from janus_dist.evaluation.samples import SamplingSettings
from janus_dist.model import janus, vq
from janus_dist.model.sample import TokenChoice
from tests import prepared
from tests.checkpoints import folder_of
from tests.images import noise, png

STEPS = 6


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> StageRecipe:
    """A run with a recipe; whatever checkpoint is loaded gives an untrained model."""
    train_tokenizer(["what color is it? red a b c d " * 9], prepared.VOCAB, tmp_path / "tokenizer.json")
    recipe = prepared.recipe(tmp_path, tmp_path / "runs", model={"init_std": 0.3}, train={"steps": STEPS})
    save(Loaded(recipe, {}, (), ()), recipe.run.dir)

    def load(recipe: StageRecipe, checkpoint: str, device: str, dtype: str) -> Sampler:
        if not Path(checkpoint, commits.MARKER).is_file():
            raise CheckpointError(f"{checkpoint} cannot be read")
        model = janus.build(recipe.model, seed=1)
        model.model.language_model.set_attn_implementation("sdpa")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            vq_tokenizer = vq.build(janus.vq_config(recipe.model)).eval()
        return Sampler(recipe, model.eval(), vq_tokenizer, load_tokenizer(recipe))

    monkeypatch.setattr(Sampler, "load", load)
    monkeypatch.setattr(samples, "POLL_S", 0.0)
    return recipe


def commit(recipe: StageRecipe, step: int) -> str:
    path = str(folder_of(recipe.run.dir, step))
    dicts = {key: {} for key in ("plan", "cursors", "recipe", "shapes", "files")}
    lists = {key: [] for key in ("losses", "left_out", "trainable")}
    marker = commits.Commit(commits.VERSION, step, "", world=1, optimizer_steps=0, tokens=0, **dicts, **lists)
    commits.write_marker(path, marker)
    return path


def image(folder: Path, name: str) -> str:
    (folder / name).write_bytes(png(noise(40, 30, len(name))))
    return str(folder / name)


def test_what_is_written(recipe, tmp_path):
    asked = [
        UserPrompt(caption="a red circle"),
        UserPrompt(question="what color is it?", images=(image(tmp_path, "a.png"), image(tmp_path, "bb.png"))),
        UserPrompt(question="a b c"),
        UserPrompt(caption="b c d"),
    ]
    how = SamplingSettings(seed=5, images_per_prompt=2, guidance=2.0, choice=TokenChoice(1.0, 8), max_new_tokens=3)
    found = samples.make(recipe, commit(recipe, 2), asked, how, tmp_path / "out")
    folder = tmp_path / "out" / "step-00000002"
    assert found["folder"] == str(folder)
    written = json.loads((folder / "samples.json").read_text())
    assert written == {key: value for key, value in found.items() if key != "folder"}
    assert (written["step"], written["guidance"], written["temperature"], written["top_k"]) == (2, 2.0, 1.0, 8)
    drawings = [(one["prompt"], one["seed"], one["file"]) for one in written["drawings"]]
    assert drawings == [
        ("a red circle", 5, "000-0.png"), ("a red circle", 6, "000-1.png"),
        ("b c d", 5, "001-0.png"), ("b c d", 6, "001-1.png"),
    ]  # fmt: skip
    assert [one["question"] for one in written["answers"]] == ["what color is it?", "a b c"]
    assert all(isinstance(one["answer"], str) for one in written["answers"])
    side = recipe.model.image_size
    pictures = [np.asarray(Image.open(folder / name)) for _, _, name in drawings]
    assert all(picture.shape == (side, side, 3) for picture in pictures)
    assert not np.array_equal(pictures[0], pictures[1])
    assert np.asarray(Image.open(folder / "grid.png")).ndim == 3
    again = samples.make(recipe, str(folder_of(recipe.run.dir, 2)), asked[:1], how, tmp_path / "again")
    assert np.array_equal(np.asarray(Image.open(Path(again["folder"]) / "000-1.png")), pictures[1])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["step-00000002"]


def test_a_grid_has_a_row_for_each_prompt():
    drawings = np.stack([np.full((3, 16, 16, 3), 40 * row, np.uint8) for row in range(1, 3)])
    made = np.asarray(samples.grid(drawings, ["one", "two"]))
    scale = 96 // 16
    assert made.shape[0] == 2 * (16 * scale + samples.CAPTION_PIXELS + 4)
    for row in range(2):
        top = row * (16 * scale + samples.CAPTION_PIXELS + 4) + samples.CAPTION_PIXELS
        assert (made[top : top + 16 * scale, : 16 * scale] == 40 * (row + 1)).all()
    assert (made[: samples.CAPTION_PIXELS, :40] < 128).any(), "the words are there"


def test_every_checkpoint_of_a_run_is_sampled_once(recipe, tmp_path, monkeypatch):
    commit(recipe, 2)
    rounds = iter([lambda: commit(recipe, 4), lambda: None, lambda: commit(recipe, STEPS)])
    monkeypatch.setattr(samples.time, "sleep", lambda _: next(rounds)())
    lines: list[str] = []
    out = recipe.run.dir / "samples"
    samples.follow(recipe.run.dir, [UserPrompt(caption="a")], SamplingSettings(), out, lines.append)
    assert [line.split(":")[0] for line in lines] == ["step 2", "step 4", "step 6"]
    assert sorted(path.name for path in out.iterdir()) == ["step-00000002", "step-00000004", "step-00000006"]
    lines.clear()
    samples.follow(recipe.run.dir, [UserPrompt(caption="a")], SamplingSettings(), out, lines.append)
    assert lines == []


def test_a_checkpoint_that_goes_away_meanwhile_is_passed_over(recipe, tmp_path, monkeypatch):
    gone, last = commit(recipe, 2), commit(recipe, STEPS)
    make = samples.make

    def late(recipe: StageRecipe, checkpoint: str, *rest):
        if checkpoint == gone:
            shutil.rmtree(gone)
        return make(recipe, checkpoint, *rest)

    monkeypatch.setattr(samples, "make", late)
    lines: list[str] = []
    samples.follow(recipe.run.dir, [UserPrompt(caption="a")], SamplingSettings(), tmp_path / "out", lines.append)
    assert lines[0] == f"{gone} was deleted before it was sampled (CheckpointError)"
    assert lines[1].startswith("step 6: ") and commits.is_committed(last)


@pytest.mark.parametrize(("arguments", "guidance"), [([], 5.0), (["--guidance", "0"], 0.0), (["--guidance", "2"], 2.0)])
def test_guidance_of_the_command_is_taken_when_it_is_given(recipe, tmp_path, arguments, guidance):
    assert recipe.evaluate.guidance == 5.0
    commit(recipe, 2)
    asked = ["sample", str(recipe.run.dir), "--prompt", "a", "--out", str(tmp_path / "out"), "--json", *arguments]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0 and json.loads(done.stdout)["guidance"] == guidance


def test_prompts_of_a_file(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a red circle"}\n\n{"question": "what?", "images": ["a.png"]}\n{"question": "hi"}\n')
    assert read_prompts(path) == [
        UserPrompt(caption="a red circle"),
        UserPrompt(question="what?", images=(str(tmp_path / "a.png"),)),
        UserPrompt(question="hi"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "p.jsonl:1 is not JSON: "),
        ('{"prompt": "a"}\n{"images": []}', "p.jsonl:2 has images"),
        ("[1]", "p.jsonl:1 has list"),
        ("\n", "p.jsonl are empty"),
    ],
)
def test_wrong_prompts_are_named(tmp_path, text, said):
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_prompts(path)
    assert said in str(caught.value)


def test_what_is_refused(recipe, tmp_path):
    checkpoint = commit(recipe, 2)
    with pytest.raises(CheckpointError, match=r"is neither a run nor a checkpoint: it has neither config\.json"):
        recipe_of(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is neither a run nor a checkpoint"):
        find(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"the image .*none\.png cannot be read: No such file"):
        samples.make(
            recipe,
            checkpoint,
            [UserPrompt(question="a", images=(str(tmp_path / "none.png"),))],
            SamplingSettings(),
            tmp_path,
        )
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"the image .*bad\.png: does not decode"):
        samples.make(
            recipe,
            checkpoint,
            [UserPrompt(question="a", images=(str(tmp_path / "bad.png"),))],
            SamplingSettings(),
            tmp_path,
        )
    long = SamplingSettings(max_new_tokens=10**6)
    with pytest.raises(ConfigError, match=r"'a' needs \d+ positions with its images and answer, the model has \d+"):
        samples.make(recipe, checkpoint, [UserPrompt(question="a")], long, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*")), "nothing is left of what failed"

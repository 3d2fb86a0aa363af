"""What a user sees of faults: the texts about recipes, word for word, and the exit code of every kind of error."""

import subprocess
import sys
from pathlib import Path

import pytest

from janus_dist.config.load import load
from janus_dist.config.recipe import StageRecipe
from janus_dist.errors import ConfigError
from tests.limits import HANG_S
from tests.unit.config.test_config_load import BASE, STAGE

ROOT = Path(__file__).parents[2]

MANY_FAULTS = """\
# a comment
optim:
  lr: -1e-4
  beta: [0.9, 0.95]
batch:
  global_tokens: 4096
  rows: eight
  rows: 8
lr: 3
mix:
  gen: 1
  text: lots
  unit: token
run: {name: 2026}
train:
  trainable:
    - vision_tower
    - text_heed
  speed: 3
monitor:
cluster: {gpu: maybe}
"""


@pytest.fixture(autouse=True)
def recipe_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """base.yaml and stage.yaml in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)
    Path("stage.yaml").write_text(STAGE)


def message(*arguments: str) -> str:
    files = [argument for argument in arguments if argument.endswith(".yaml")]
    with pytest.raises(ConfigError) as caught:
        load(StageRecipe, files, [argument for argument in arguments if not argument.endswith(".yaml")])
    return str(caught.value)


def write(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


def test_every_kind_of_fault_at_once():
    bad = write("bad.yaml", MANY_FAULTS)
    text = message("base.yaml", "stage.yaml", bad, "stage=0", "stage3", "engine=4", "optm.lr=1", "data.chat={: }")
    assert text + "\n" == (Path(__file__).parent / "many_faults.txt").read_text()


def test_absent_settings():
    Path("stage.yaml").write_text(STAGE.replace("rows: 4, ", "").replace("mix:", "# mix:"))
    assert (
        message("base.yaml", "stage.yaml", "batch.fill=0.9")
        == """\
2 faults in the config; nothing was started.
  stage.yaml:4
    batch.rows: is required
  base.yaml, stage.yaml
    mix: is required"""
    )


def test_what_a_stage_goes_over_is_named():
    with pytest.raises(ConfigError) as caught:
        load(StageRecipe, ["stage.yaml"])
    assert caught.value.hint == "stage.yaml builds on base.yaml: give base.yaml stage.yaml"
    with pytest.raises(ConfigError) as caught:
        load(StageRecipe, ["base.yaml", "stage.yaml"], ["batch.fill=2"])
    assert caught.value.hint is None


def test_rules_between_settings():
    assert (
        message(
            "base.yaml",
            "stage.yaml",
            "batch.row_tokens=10",
            "optim.warmup_steps=10",
            "mix.unit=samples",
            "batch.fill=0.5",
        )
        == """\
3 faults in the config; nothing was started.
  stage.yaml:4
    batch.samples is required with mix.unit=samples; it is the number of samples in a step
  override 'batch.row_tokens=10'
    batch.row_tokens=10 cannot hold an image of 16 tokens and its text; set it to 80 or more
  override 'optim.warmup_steps=10'
    optim.warmup_steps=10 must be less than train.steps=10"""
    )


def test_rules_inside_a_section():
    assert (
        message("base.yaml", "stage.yaml", "model.image_size=18", "mix={understanding: 0, text: 0, generation: 0}")
        == """\
3 faults in the config; nothing was started.
  stage.yaml:3
    mix: all three ratios are 0 from step 0 on; give at least one stream a share
  override 'model.image_size=18'
    model: image_size=18 is not a multiple of vision.patch = 8
    model: image_size=18 is not a multiple of vq downsampling = 4"""
    )


def test_files_that_cannot_be_read_are_named_with_the_other_faults():
    syntax = write("syntax.yaml", "run:\n  name: [a\nstage: 3\n")
    no_section = write("list.yaml", "- 1\n")
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert (
        message("base.yaml", "stge.yaml", syntax, no_section, "binary.yaml", "no/folder.yaml", "cluster.workers=0")
        == """\
6 faults in the config; nothing was started.
  stge.yaml
    no such file; did you mean 'stage.yaml'?
  syntax.yaml:3
    is not YAML: expected ',' or ']', but got ':'
  list.yaml:1
    a recipe consists of `key: value` lines
  binary.yaml
    cannot be read: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte
  no/folder.yaml
    no such file; the folder 'no' does not exist
  override 'cluster.workers=0'
    cluster.workers: should be greater than 0; got 0"""
    )


def job(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A small script whose `main` has this body, run as a job is."""
    Path("job.py").write_text(
        f'''"""A job for tests."""
from pathlib import Path
from janus_dist import errors
from janus_dist.cli.job import recipe_from_args, run_job
from janus_dist.config.recipe import StageRecipe

def main():
    {body}

run_job(main)
'''
    )
    return run(sys.executable, "job.py", *arguments)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command that needs the packages of this repository; its output is not a terminal."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, env=environment, check=False)


RECIPE = 'loaded = recipe_from_args(StageRecipe, [Path("base.yaml"), Path("stage.yaml")]); print(loaded.recipe.stage)'


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("return None", 0),
        ("return 7", 7),
        ("raise errors.ConfigError('what', 'hint')", 2),
        ("raise errors.DataError('what', 'hint')", 3),
        ("raise errors.CheckpointError('what', 'hint')", 4),
        ("raise errors.DivergedError('what', 'hint')", 5),
        ("raise errors.ClusterError('what', 'hint')", 6),
        ("raise errors.PreemptedError('what', 'hint')", 75),
        ("raise KeyboardInterrupt", 130),
    ],
)
def test_exit_codes(body: str, code: int):
    done = job(body)
    assert (done.returncode, done.stdout) == (code, "")
    assert "Traceback" not in done.stderr
    if "hint" in body:
        assert done.stderr == "what\n  hint\n"


WAITS = """import os, signal, time
    try:
        {}os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
    finally:
        print("cleaned up")"""


def test_asked_to_stop_a_job_ends_as_one_that_goes_on():
    done = job(WAITS.format(""))
    assert (done.returncode, done.stdout) == (75, "cleaned up\n")
    assert done.stderr == "the job was stopped by SIGTERM\n  finished work is kept: run the same command to resume\n"


def test_also_while_ray_has_its_own_way_to_end():
    done = job(WAITS.format("signal.signal(signal.SIGTERM, lambda number, _: __import__('sys').exit(number)); "))
    assert (done.returncode, done.stdout) == (75, "cleaned up\n"), done.stderr


def test_our_own_mistakes_keep_their_traceback():
    done = job("raise ValueError('oh')")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("ValueError: oh\n")


def test_codes_are_documented():
    documented = (ROOT / "docs" / "errors.md").read_text()
    for error in (ConfigError, *ConfigError.__bases__[0].__subclasses__()):
        assert f"| {error.exit_code} | `{error.__name__}` |" in documented


def test_a_job_takes_defaults_recipes_and_overrides():
    assert job(RECIPE).stdout == "2\n"
    assert job(RECIPE, "stage=3").stdout == "3\n"
    write("other.yaml", BASE + STAGE.replace("run:", "#").replace("stage: 2", "stage: 1"))
    assert job(RECIPE, "other.yaml").stdout == "1\n"


def test_a_job_shows_long_lines_of_faults_unbroken():
    done = job(RECIPE, "train.trainable=[x]")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "1 fault in the config; nothing was started.",
        "  override 'train.trainable=[x]'",
        "    train.trainable.0: should be 'vision_tower', 'understanding_adaptor', 'language_model', 'text_head', "
        "'generation_embedding', 'generation_adaptor' or 'image_head'; got 'x'",
    ]


def test_options_are_refused_with_the_right_form():
    done = job(RECIPE, "--optim.lr=3", "-x")
    assert done.returncode == 2
    assert (
        done.stderr == "no such option: --optim.lr=3, -x\n"
        "  settings are given as optim.lr=VALUE; --help lists the arguments of this job\n"
    )


@pytest.mark.parametrize("arguments", [["--local"], ["--local", "stage=3"], ["stage=3", "--local"]])
def test_every_job_takes_local(arguments: list[str]):
    done = job(RECIPE + "; print(__import__('os').environ['RAY_ADDRESS'])", *arguments)
    assert done.returncode == 0 and done.stdout.split() == [str(1 + len(arguments)), "local"], done.stderr


def test_help_of_a_job():
    done = job(RECIPE, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(
        "A job for tests.\n\nusage: python jobs/job.py [RECIPE.yaml ...] [key.path=value ...]\n"
    )
    assert "\n  --local " in done.stdout
    for section in StageRecipe.model_fields:
        assert f"\n  {section} " in done.stdout or f"\n  {section}\n" in done.stdout


JANUS = (sys.executable, "-c", "from janus_dist.cli.main import janus; janus()")


def test_janus_config_show():
    done = run(*JANUS, "config", "show", "base.yaml", "stage.yaml", "stage=3")
    assert done.returncode == 0, done.stderr
    lines = {line.split("  # ")[0].rstrip(): line.split("  # ")[1] for line in done.stdout.splitlines()}
    assert lines["stage=3"] == "override"
    assert lines['run.name="two"'] == "stage.yaml:2"
    assert lines['monitor.wandb="offline"'] == "default"


def test_janus_config_show_of_a_base_recipe():
    done = run(*JANUS, "config", "show", "base.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert '"name": "base"' in done.stdout


def test_janus_config_diff():
    write("other.yaml", "optim: {lr: 0.1}\n")
    done = run(*JANUS, "config", "diff", "base.yaml+stage.yaml", "base.yaml+stage.yaml+other.yaml")
    assert (done.returncode, done.stdout) == (0, "optim.lr: 0.0001 -> 0.1\n"), done.stderr


def test_janus_faults_end_with_their_code():
    done = run(*JANUS, "config", "show", "base.yml")
    assert done.returncode == 2
    assert done.stderr.endswith("no such file; did you mean 'base.yaml'?\n")
    assert run(*JANUS, "config", "nonsense").returncode == 2


def test_janus_config_schema():
    done = run(*JANUS, "config", "schema")
    assert done.returncode == 0, done.stderr
    assert '"row_tokens"' in done.stdout


def test_janus_report_of_a_folder_without_runs():
    for command in (("report",), ("runs", "report")):
        done = run(*JANUS, *command, "nowhere")
        assert done.returncode == 3
        assert "nowhere" in done.stderr and "Traceback" not in done.stderr

"""What a user of `janus data` sees: the output of every command, every refusal word for word, exit codes."""

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from janus_dist.cli.main import app
from janus_dist.errors import JanusError
from janus_dist.storage.repair import REMAKE_SHARD
from tests import shard_sets
from tests.limits import HANG_S

ROOT = Path(__file__).parents[2]
END = "<\uff5cend\u2581of\u2581sentence\uff5c>"
BEGIN = END.replace("end", "begin")
AGAIN = REMAKE_SHARD


@pytest.fixture
def words(tmp_path, monkeypatch):
    """Three shard sets under `data` and their tokenizer, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return shard_sets.write_root(tmp_path)


@pytest.fixture
def janus(capsys):
    """Run `janus data ARGUMENTS`: exit code, stdout, and the message and hint of an error."""

    def run(*arguments):
        code, message = 0, ""
        try:
            app(["data", *arguments], standalone_mode=False)
        except JanusError as error:
            code, message = error.exit_code, str(error)
        return code, capsys.readouterr().out, message

    return run


def test_info_of_one_set(words, janus):
    code, out, _ = janus("info", "data/generation")
    digest = json.loads(janus("info", "data/generation", "--json")[1])["shard_sets"][0]["digest"]
    lines = out.splitlines()
    assert code == 0 and lines[0] == "generation  data/generation"
    assert lines[1] == "  samples      5"
    assert lines[2].startswith("  tokens       ") and "(shortest " in lines[2] and ", longest " in lines[2]
    assert lines[3:] == [
        "  text labels  0",
        "  VQ ids       80, 16 an image of 16x16 pixels",
        "  shards       2, 20.5kB",
        "  quarantined  3 (too small 2, empty 1)",
        f"  digest       {digest}",
        f"  tokenizer    {words.sha256}",
        f"  VQ weights   {'0' * 64}",
        "  settings     shard_samples=4",
        '               source="a test"',
    ]


def test_info_of_a_root(words, janus):
    _, out, _ = janus("info", "data/")
    streams = ("understanding", "text", "generation")
    assert [line for line in out.splitlines() if line[0] != " "] == [f"{name}  data/{name}" for name in streams]
    assert "  images       7 of 16x16 pixels, 4 tokens each" in out.splitlines()
    assert " with train.answers_only)" in out


def test_info_as_json_is_stable(words, janus):
    code, out, _ = janus("info", "data", "--json")
    assert code == 0 and out == janus("info", "data", "--json")[1]
    first = json.loads(out)["shard_sets"][0]
    assert out == json.dumps(json.loads(out), indent=1, sort_keys=True) + "\n"
    assert list(first) == [
        "bytes", "digest", "folder", "image_ids", "image_size", "image_tokens", "images", "labels", "quarantined",
        "samples", "settings", "shards", "stream", "token_quantiles", "tokenizer_sha256", "tokens", "vq_ids",
        "vq_sha256",
    ]  # fmt: skip
    assert list(first["token_quantiles"]) == ["0", "0.1", "0.5", "0.9", "0.99", "1"]


@pytest.mark.parametrize("command", [["info"], ["lint"], ["preview"], ["report"], ["diff", "nowhere"]])
def test_no_shard_set(words, janus, command):
    assert janus(*command, "nowhere") == (
        3,
        "",
        "no shard set in nowhere: neither manifest.json nor a folder with one, as understanding/manifest.json\n"
        "  give the folder of a shard set or a data.root; jobs/prepare.py makes them",
    )


def test_lint_of_sound_sets(words, janus):
    code, out, message = janus("lint", "data", "--deep", "--tokenizer", "tokenizer.json")
    assert (code, message) == (0, "")
    lines = [line for line in out.splitlines() if "read " not in line]
    assert lines == [
        "data/understanding",
        "  0 faults; checked 2 shards",
        "data/text",
        "  0 faults; checked 1 shard",
        "data/generation",
        "  0 faults; checked 2 shards",
        "  not checked: range of VQ ids (give --vq-weights, with sha256 000000000000)",
    ]


def test_lint_says_how_much_was_checked(words, janus):
    _, out, _ = janus("lint", "data/understanding", "--samples", "2")
    assert out.splitlines()[2].startswith("  read 2 of 7 samples, ")
    assert out.splitlines()[3:] == [
        "  not checked: 5 samples, digests and keys of shards (--deep reads all)",
        f"  not checked: token ids (give --tokenizer, with sha256 {words.sha256[:12]})",
    ]


def test_lint_numbers_faults_over_all_sets(words, janus):
    Path("data/generation/shard-00001.index.npy").unlink()
    text = Path("data/text/shard-00000.tar")
    text.write_bytes(text.read_bytes()[:-512])
    shard_sets.flip(Path("data/understanding/shard-00000.tar"), 600)
    code, out, message = janus("lint", "data", "--deep", "--tokenizer", "tokenizer.json")
    lines = out.splitlines()
    assert (code, message) == (3, "4 faults in data")
    size = text.stat().st_size
    assert lines[1:3] == [
        "  1. shard-00000: the tar has another sha256 than the manifest says",
        f"     {AGAIN}",
    ]
    assert lines[3].startswith("  2. shard-00000, sample 0, key understanding-00000: damaged: its checksum is ")
    assert lines[7:11] == [
        "data/text",
        f"  3. shard-00000: the tar has {size:,} bytes, the manifest says {size + 512:,}",
        f"     {AGAIN}",
        "  1 fault; checked 1 shard",
    ]
    assert "  4. shard-00001: the index is missing" in lines
    assert "  not checked: 4 samples of shards that cannot be read" in lines


def test_lint_of_an_unreadable_manifest_goes_on_with_the_others(words, janus):
    Path("data/text/manifest.json").write_text("{")
    code, out, message = janus("lint", "data")
    assert (code, message) == (3, "1 fault in data")
    assert "  1. the shard set: data/text/manifest.json is not JSON: " in out
    assert "data/generation\n  0 faults; checked 2 shards" in out


def test_lint_as_json(words, janus):
    Path("data/text/shard-00000.tar").unlink()
    code, out, message = janus("lint", "data/text", "--json")
    assert (code, message) == (3, "1 fault in data/text")
    found = json.loads(out)
    assert out == json.dumps(found, indent=1, sort_keys=True) + "\n" and found["faults"] == 1
    assert found["shard_sets"][0] == {
        "folder": "data/text",
        "faults": [
            {"shard": "shard-00000", "sample": None, "key": None, "what": "the tar is missing", "do": AGAIN}
        ],
        "shards": 1,
        "samples": 4,
        "samples_read": 0,
        "bytes_read": found["shard_sets"][0]["bytes_read"],
        "not_checked": found["shard_sets"][0]["not_checked"],
    }  # fmt: skip


def test_preview_of_a_key(words, janus):
    code, out, _ = janus("preview", "data", "--key", "understanding-00001", "--tokenizer", "tokenizer.json")
    title = out.splitlines()[2]
    assert code == 0 and out.startswith("[[ ]] marks what the loss counts\n\n")
    assert title.startswith("understanding sample 1 of 7, key understanding-00001, shard-00000: ")
    assert out.split(title)[1] == (
        f"\n{BEGIN}[[User: ]]<begin_of_image><image 4 tokens><end_of_image>[[\nwhat color?\n\n"
        f"Assistant: blue blue{END}]]\n"
    )


def test_preview_with_answers_only(words, janus):
    asked = ("preview", "data/understanding", "--sample", "0", "--number", "1", "--tokenizer", "tokenizer.json")
    out = janus(*asked, "--answers-only")[1]
    assert out.endswith(f"\nwhat color?\n\nAssistant:[[ blue{END}]]\n")
    counted = [int(each.split("the loss counts ")[1].split()[0]) for each in (janus(*asked)[1], out)]
    assert counted[0] > counted[1] > 1


def test_preview_of_numbers(words, janus):
    _, out, _ = janus("preview", "data/generation", "--sample", "3", "--tokenizer", "tokenizer.json")
    assert [line.split(":")[0] for line in out.splitlines() if "sample " in line] == [
        "generation sample 3 of 5, key generation-00003, shard-00001",
        "generation sample 4 of 5, key generation-00004, shard-00001",
    ]
    assert "Assistant:<begin_of_image>[[<16 VQ ids>]]" in out


def test_preview_draws_by_the_seed(words, janus):
    asked = ("preview", "data", "--number", "2", "--tokenizer", "tokenizer.json")
    assert janus(*asked)[1].count(" sample ") == 6
    assert janus(*asked)[1] == janus(*asked)[1] != janus(*asked, "--seed", "1")[1]


def test_preview_on_a_terminal_is_colored(words, janus, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, out, _ = janus("preview", "data/text", "--sample", "0", "--tokenizer", "tokenizer.json")
    assert "[[" not in out and "\x1b[1;32mblue" in out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "[[blue" in janus("preview", "data/text", "--sample", "0", "--tokenizer", "tokenizer.json")[1]


REFUSALS = [
    (["preview", "data/text"], 3, "the tokenizer of the text shards, sha256 DIGEST, is not among the embedded ones\n"
     "  give it with --tokenizer PATH/tokenizer.json"),
    (["preview", "data/text", "--tokenizer", "other.json"], 3,
     "other.json has sha256 OTHER, the text shards were made with DIGEST\n"
     "  its ids mean other text; give the tokenizer.json that the shards were made with"),
    (["lint", "data/text", "--tokenizer", "other.json"], 3,
     "other.json has sha256 OTHER, the text shards were made with DIGEST\n"
     "  its ids mean other text; give the tokenizer.json that the shards were made with"),
    (["preview", "data/text", "--tokenizer", "absent.json"], 3,
     "data.tokenizer=absent.json cannot be read: No such file or directory"),
    (["preview", "data/text", "--sample", "4", "--tokenizer", "tokenizer.json"], 3,
     "there is no sample 4: the text shard set holds 4\n  samples are counted from 0 to 3"),
    (["preview", "data", "--sample", "4", "--tokenizer", "tokenizer.json"], 2,
     "data holds 3 shard sets, but --sample needs a single one\n  give data/understanding"),
    (["preview", "data", "--key", "x", "--tokenizer", "tokenizer.json"], 3,
     "no sample in data has the key x\n"
     "  list keys with `tar -tf SHARD.tar` or read them in its block-N.json; or select a sample by --sample"),
    (["preview", "data", "--key", "x", "--sample", "1"], 2,
     "--sample and --key both name a sample\n  give one of them"),
    (["report", "data", "--vq-weights", "vq.safetensors"], 2,
     "--vq-weights needs the sizes of the VQ tokenizer\n  give --recipe RECIPE.yaml too"),
    (["lint", "data/generation", "--vq-weights", "other.json"], 3,
     "other.json has sha256 OTHER, the generation shards were made with VQ weights 000000000000\n"
     "  its codes mean other pixels; give the weights that the shards were made with"),
    (["info", "gcs9://data"], 2,
     "gcs9://data cannot be read: Protocol not known: gcs9\n  give a local folder or an s3:// URL"),
    (["diff", "data", "."], 2,
     "nothing to compare: data holds understanding, text, generation and . holds other\n"
     "  give two shard sets, or two folders with shard sets of the same names"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "message"), REFUSALS, ids=lambda value: str(value)[:40])
def test_refusals(words, janus, arguments, code, message):
    other = Path("other.json")
    other.write_bytes(Path("tokenizer.json").read_bytes() + b"\n")
    message = message.replace("DIGEST", words.sha256[:12])
    message = message.replace("OTHER", hashlib.sha256(other.read_bytes()).hexdigest()[:12])
    shard_sets.write_set("other", "text", words)
    found = janus(*arguments)
    assert (found[0], found[2]) == (code, message)


def test_damaged_samples_are_refused_with_the_way_on(words, janus):
    shard_sets.flip(Path("data/understanding/shard-00000.tar"), 600)
    asked = ("data/understanding", "--tokenizer", "tokenizer.json")
    message = (
        "data/understanding/shard-00000.tar cannot be read: sample 0 is damaged, its checksum is not the one in the "
        "index\n  `janus data lint data/understanding` lists what is wrong"
    )
    code, _, found = janus("preview", *asked, "--sample", "0")
    assert (code, found) == (3, message)
    code, _, found = janus("report", *asked)
    assert (code, found) == (3, message) and not Path("data-report.html").exists()


def test_diff(words, janus):
    assert janus("diff", "data", "data") == (
        0, "understanding: no difference\ntext: no difference\ngeneration: no difference\n", ""
    )  # fmt: skip
    more = shard_sets.several("text", words, 5, first=1)
    shard_sets.write_set(Path("more/text"), "text", words, more, settings={"source": "a test", "shard_samples": 5})
    code, out, _ = janus("diff", "data", "more")
    lines = out.splitlines()
    assert code == 0 and lines[:3] == ["only in data: understanding", "only in data: generation", "text:"]
    assert lines[3].startswith('  digest: "')
    assert lines[4] == "  samples: 4 -> 5" and "  settings.shard_samples: 4 -> 5" in lines
    assert lines[-2:] == [
        "  samples only in the first: 1 (keys text-00000)",
        "  samples only in the second: 2 (keys text-00004, text-00005)",
    ]


def test_diff_as_json_is_stable(words, janus):
    shard_sets.write_set(Path("other"), "text", words, shard_sets.several("text", words, 4), settings={})
    code, out, _ = janus("diff", "data/text", "other", "--json")
    found = json.loads(out)
    assert code == 0 and out == json.dumps(found, indent=1, sort_keys=True) + "\n"
    assert found["only_in"] == {"data/text": [], "other": []}
    each = found["shard_sets"]["text"]
    assert list(each) == ["changed", "only_first", "only_second", "values"]
    assert ["settings.source", "a test", None] in each["values"]
    assert each["changed"] == each["only_first"] == each["only_second"] == {"count": 0, "first": []}


def test_report(words, janus):
    code, out, _ = janus("report", "data", "--tokenizer", "tokenizer.json", "--out", "page.html")
    assert (code, out) == (0, "page.html\n") and Path("page.html").stat().st_size > 10_000


def test_report_goes_beside_what_it_describes(words, janus):
    code, out, _ = janus("report", "data", "--tokenizer", "tokenizer.json")
    assert (code, out) == (0, "data/data-report.html\n") and not Path("data-report.html").exists()
    assert janus("info", "data")[0] == 0, "the page is no shard set"


def test_quarantine(words, janus):
    code, out, _ = janus("quarantine", "data")
    lines = out.splitlines()
    assert code == 0 and lines[0] == "data/generation: 3 records refused (too small 2, empty 1)" and len(lines) == 4
    assert lines[-1] == "  c  empty: no words  (c.png)"
    _, out, _ = janus("quarantine", "data/generation", "--number", "1")
    assert out.splitlines()[-1] == "  and 2 more rows; --csv prints all"
    _, out, _ = janus("quarantine", "data/generation", "--kind", "empty")
    assert out.splitlines()[1:] == ["  c  empty: no words  (c.png)"]


def test_quarantine_as_csv(words, janus):
    rejects = [("a,b.png", "k", 'too small: "5x5"\nand more', b"\xff\xd8\\x"), ("c", "l", "empty: no words", b"")]
    shard_sets.write_quarantine(Path("data/generation"), *rejects)
    Path("data/generation/manifest.json").unlink()  # a run that failed leaves none
    code, out, _ = janus("quarantine", "data/generation", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and list(rows[0]) == ["input", "source", "key", "kind", "reason", "records", "head"]
    assert [(row["source"], row["key"], row["reason"]) for row in rows] == [reject[:3] for reject in rejects]
    assert [(row["input"], row["kind"], row["records"], row["head"]) for row in rows] == [
        ("generation", "too small", "1", r"\xff\xd8\x5cx"),
        ("generation", "empty", "1", ""),
    ]
    assert janus("quarantine", "data/text")[2].startswith("no quarantine table in data/text: neither quarantine.parq")


def run(*arguments):
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from janus_dist.cli.main import janus; janus()", "data", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, env=environment, check=False)


def test_faults_end_the_process_with_their_code(words):
    Path("data/text/shard-00000.tar").unlink()
    done = run("lint", "data/text")
    assert (done.returncode, done.stderr) == (3, "1 fault in data/text\n")
    assert done.stdout.startswith("data/text\n  1. shard-00000: the tar is missing\n")


def test_help_names_every_command():
    done = run("--help")
    assert done.returncode == 0
    assert all(f" {name} " in done.stdout for name in ("info", "lint", "preview", "diff", "quarantine", "report"))

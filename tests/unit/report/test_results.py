"""The page of the proof: its figures are those of the summary, its verdicts follow from them."""

import json
import re
import shutil

import pytest

from janus_dist.config.recipe import StageRecipe
from janus_dist.errors import ConfigError, DataError
from janus_dist.evaluation import run
from janus_dist.evaluation.interval import measured, wilson
from janus_dist.proof import arms as arms_of_job
from janus_dist.proof.arms import ARMS, PROOF, SEEDS, ablation, evaluation_of, recipe_of, row
from janus_dist.report.results import ABOVE_CHANCE, TOLERANCE, directions, merged, read_notes, write_results
from tests.checkpoints import mark

FOUND = {"share": 0.9, "low": 0.88, "high": 0.92, "of": 1234}


LEARNED = {
    "seconds": 3600.0, "vq_psnr_db": 27.61, "vq_codes_used": 495, "detector_accuracy_on_real": 0.999,
    "detector_accuracy_on_reconstructions": 0.985, "understanding_blind": 0.67, "generation_chance": 0.04,
    "understanding_accuracy": 0.98, "generation_accuracy": 0.96,
    "understanding_intervals": {"all": FOUND}, "generation_intervals": {"all": FOUND, "red": FOUND},
}  # fmt: skip


VQ_OR_SIGLIP = ("vq", "siglip", "siglip", "siglip")
BLIND, CHANCE = 0.5, 0.1


def arms(spread: float = 0.01, drawn: float = 0.6, seeds: int = 3, **understanding: float) -> list[dict]:
    """Rows of arms with these means of understanding, whose seeds lie `spread` apart."""
    found = []
    for arm, mean in understanding.items():
        places = range(-(seeds // 2), seeds // 2 + 1)
        understood = {"understanding_blind": BLIND} if arm != "F" else {}
        drew = {"generation_chance": CHANCE} if arm != "E" else {}
        found.append(
            row(
                arm,
                [
                    {
                        **(understood and understood | {"understanding_accuracy": mean + place * spread}),
                        **(drew and drew | {"generation_accuracy": drawn + place * spread}),
                    }
                    for place in places
                ],
            )
        )
    return found


def test_an_arms_row():
    (found,) = arms(E=0.8)
    assert found["name"] == "E" and found["seeds"] == 3 and found["meaning"] == ARMS["E"]
    assert found["understanding_mean"] == pytest.approx(0.8)
    assert found["understanding_spread"] == pytest.approx(0.01)
    assert (found["generation_mean"], found["generation_spread"], found["generation_each"]) == (None, None, [])
    assert (found["understanding_blind"], found["generation_chance"]) == (BLIND, None)


def test_verdicts_follow_from_the_figures():
    better, near, drawn = directions(arms(A=0.6, D=0.8, E=0.805, F=0.0))
    assert "reproduced; +0.200, more than the spread of seeds (0.010)" in better and "NOT" not in better
    assert "reproduced; -0.005, within the spread" in near and "NOT" not in near
    assert "+0.000" in drawn and "NOT" not in drawn
    worse, behind, _ = directions(arms(A=0.79, D=0.795, E=0.9, F=0.0))
    assert "NOT reproduced; +0.005, within" in worse
    assert "NOT reproduced; -0.105, more" in behind


def test_arms_at_chance_show_nothing():
    """Arms that learned nothing are as good as each other."""
    better, as_well, drawn = directions(arms(A=0.54, D=0.8, E=BLIND, F=0.0, drawn=CHANCE + ABOVE_CHANCE))
    assert "not shown: at chance (0.500) or less than 0.05 above it with a seed: A (0.530)" in better
    assert "not shown: at chance" in as_well and "with a seed: E (0.490)" in as_well
    assert "a seed: D (0.140), F (0.140)" in drawn, "the lowest seed counts, not the mean"
    assert not any("reproduced" in one for one in (better, as_well, drawn))
    *_, drawn = directions(arms(A=0.6, D=0.8, E=0.8, F=0.0, drawn=CHANCE + ABOVE_CHANCE + 0.02))
    assert ": reproduced; +0.000" in drawn


def test_seeds_that_differ_much_decide_nothing():
    for spread, seen in ((1.1 * TOLERANCE, "cannot tell: seeds spread by 0.055, more than 0.05"), (0.04, "reproduced")):
        assert all(seen in one for one in directions(arms(A=0.7, D=0.8, E=0.8, F=0.0, spread=spread)))
    assert all("cannot tell: one seed" in one for one in directions(arms(A=0.7, D=0.8, E=0.8, F=0.0, seeds=1)))


def test_the_page_has_all_figures(tmp_path):
    scenes = LEARNED | {"generation_exact_accuracy": 0.777, "generation_intervals": {"all": FOUND, "counting": FOUND}}
    made = {"took_s": 3600.0, "machine": "x86_64 Processor", "cores": 7, "date": "2026-11-28", "commit": "abc123"}
    parts = {"easy-vqa": made, "scenes": made | {"took_s": 7200.0, "commit": None}}
    found = {"ablation": arms(A=0.6, D=0.8, E=0.81, F=0.0), "scenes": scenes, "parts": parts}
    text = write_results(LEARNED | found, tmp_path).read_text()
    for expected in (
        "Made on x86_64 Processor, 7 cores, on 2026-11-28, with commit `abc123`, in 60 minutes.",
        "| understanding, all | 0.900 | 0.880 to 0.920 | 1,234 | 0.97 |", "27.6 dB with 495 codes",
        "with an unknown commit, in 120 minutes", "| generation, counting | 0.900 | 0.880 to 0.920 | 1,234 |  |",
        "| understanding, all | 0.900 | 0.880 to 0.920 | 1,234 |  |", "| generation, with nothing else drawn | 0.777 |",
        "| A | single encoder (VQ) for both | 3 | 0.600 (spread 0.010) | 0.600 (spread 0.010) |", "| - |", "98.5%",
        "D has an advantage over A", "sees as much of it as D does",
    ):  # fmt: skip
        assert expected in text
    assert text.count("were not recorded") == 1, "of the ablation alone"
    links = re.findall(r"\]\((.*?)\)", text)
    assert {path.name for path in tmp_path.iterdir()} == {"results.md", "results.json", *links} and len(links) == 2


def test_parts_made_at_different_times_share_a_page(tmp_path):
    """Each keeps where and when it was made."""
    made = {"took_s": 60.0, "machine": "m", "cores": 2, "date": "2026-11-28", "commit": "first"}
    before = LEARNED | {"settings": [], "parts": {"easy-vqa": made, "scenes": made}, "scenes": LEARNED}
    later = {"settings": [], "parts": {"scenes": made | {"commit": "second"}}, "scenes": LEARNED | {"vq_psnr_db": 20.0}}
    found = merged(later, before)
    assert found["vq_psnr_db"] == 27.61 and found["scenes"]["vq_psnr_db"] == 20.0
    assert {name: part["commit"] for name, part in found["parts"].items()} == {"easy-vqa": "first", "scenes": "second"}
    other = later | {"settings": ["cluster.gpu=true"]}
    assert merged(other, before) == other
    alone = write_results(later, tmp_path).read_text()
    assert "on scenes" in alone and "on easy-vqa" not in alone


def test_the_page_says_which_aims_are_missed_and_why(tmp_path):
    text = write_results(LEARNED | {"understanding_accuracy": 0.97, "generation_accuracy": 0.9}, tmp_path).read_text()
    assert "for understanding is not reached" not in text
    assert "**The aim of 0.95 for generation is not reached (0.900).** The reason is not known." in text
    missed = {"understanding_accuracy": 0.9, "generation_accuracy": 0.9, "detector_accuracy_on_reconstructions": 0.92}
    notes = {"aim-understanding": "Small images.\n", "understanding-D-A": "Unused."}
    text = write_results(LEARNED | missed, tmp_path, notes).read_text()
    assert "**The aim of 0.97 for understanding is not reached (0.900).** Small images.\n" in text
    assert "0.95 for generation is not reached (0.900).** Of real images, 0.920 are judged correctly" in text
    assert "not known" not in text
    assert "Small images" not in write_results(LEARNED, tmp_path, notes).read_text(), "of what did not fail"


def test_a_note_stands_where_its_direction_failed(tmp_path):
    rows, notes = arms(A=0.79, D=0.795, E=0.9, F=0.0), {"understanding-D-A": "Few steps.", "generation-D-F": "Unused."}
    worse, behind, drawn = directions(rows, notes)
    assert worse.endswith("(0.010). Few steps.") and behind.endswith("(0.010). The reason is not known.")
    assert drawn.endswith("(0.010)")
    assert "Few steps." in write_results(LEARNED | {"ablation": rows}, tmp_path, notes).read_text()


def test_a_note_stands_below_scenes(tmp_path):
    found = LEARNED | {"scenes": LEARNED}
    text = write_results(found, tmp_path, {"scenes": "Relations come last.\n"}).read_text()
    assert "\nRelations come last.\n\n## Reference curves" in text


def test_notes_of_nothing_are_refused(tmp_path):
    path = tmp_path / "notes.yaml"
    path.write_text("understanding-D-A: Few steps.\naim-drawing: Small.\n")
    with pytest.raises(DataError, match="unknown keys: aim-drawing"):
        read_notes(path)
    path.write_text("understanding-D-A: Few steps.\n")
    assert read_notes(path) == {"understanding-D-A": "Few steps."}
    read_notes(PROOF / "notes.yaml")


@pytest.mark.parametrize(
    ("right", "number", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],  # the last: Newcombe (1998), table I
)
def test_wilsons_interval(right, number, low, high):
    assert wilson(right, number) == pytest.approx((low, high), abs=1e-4)
    found = measured([True] * right + [False] * (number - right))
    assert found["share"] == right / number and found["of"] == number


def test_arms_differ_in_what_they_say_and_in_nothing_else():
    recipes = {arm: recipe_of(arm, SEEDS[1], []).recipe for arm in ARMS}
    assert {arm: one.model.reads_by for arm, one in recipes.items()} == dict(zip("ADEF", VQ_OR_SIGLIP, strict=True))
    weights = {arm: (one.mix.understanding, one.mix.text, one.mix.generation) for arm, one in recipes.items()}
    assert weights == {"A": (2, 0, 3), "D": (2, 0, 3), "E": (2, 0, 0), "F": (0, 0, 3)}
    assert len({one.run.dir for one in recipes.values()}) == len(ARMS)
    rows = {arm: (one.batch.rows, one.batch.micro_rows) for arm, one in recipes.items()}
    assert rows == {"A": (5, 5), "D": (5, 5), "E": (2, 2), "F": (3, 3)}, "as many as each stream has"
    kept = {
        "model": {"reads_by"}, "run": {"name"}, "mix": {"understanding", "text", "generation"},
        "batch": {"rows", "micro_rows"},
    }  # fmt: skip
    first, *others = (one.model_dump(exclude=kept) for one in recipes.values())
    assert all(other == first for other in others)


@pytest.fixture
def evaluated(tmp_path, monkeypatch) -> StageRecipe:
    """An arm's run that is complete and evaluated."""
    recipe = recipe_of("E", 0, [f"run.root={tmp_path}"]).recipe
    path = mark(recipe.run.saved_in, recipe.train.steps, recipe=recipe.model_dump(mode="json"))
    (recipe.run.dir / "evaluation").mkdir()
    of = run.what_decides(recipe, path, run.load_vq(recipe.model, recipe.data.vq_weights), ["understanding"], False)
    (recipe.run.dir / "evaluation" / "evaluation.json").write_text(json.dumps({"of": of}))
    return recipe


def test_an_evaluation_counts_for_the_last_checkpoint_of_a_complete_run_only(evaluated, tmp_path):
    assert evaluation_of(evaluated) is not None
    for other in ("train.steps=500", "evaluate.max_questions=7"):
        assert evaluation_of(recipe_of("E", 0, [f"run.root={tmp_path}", other]).recipe) is None, other
    shutil.rmtree(evaluated.run.saved_in)
    assert evaluation_of(evaluated) is None, "of a checkpoint that is gone"
    mark(evaluated.run.saved_in, evaluated.train.steps, tokens=8)
    assert evaluation_of(evaluated) is None, "of a run that was trained anew"


@pytest.mark.parametrize("other", ["train.steps=500", "optim.lr=0.5", "batch.rows=8"])
def test_runs_of_another_budget_are_refused_and_keep_their_recipes(evaluated, tmp_path, other):
    with pytest.raises(
        ConfigError, match=f"e-0: {other.split('=')[0]}: .* in the checkpoint, {other.split('=')[1]} now"
    ):
        ablation([f"run.root={tmp_path}", other], print)
    assert not list(tmp_path.rglob("config.json"))


def test_only_what_is_missing_is_done_and_says_its_recipe(evaluated, tmp_path, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(arms_of_job, "SEEDS", (0,))
    monkeypatch.setattr(
        arms_of_job, "train_all", lambda recipes, show, then: asked.extend(one.run.name for one in recipes)
    )
    with pytest.raises(AssertionError, match="a-0 was trained and evaluated, but not"):
        ablation([f"run.root={tmp_path}"], prepare=lambda recipe: None)
    assert asked == ["a-0", "d-0", "f-0"]
    assert {path.parent.name for path in tmp_path.rglob("config.json")} == set(asked)


def test_one_task_alone_sees_as_much_of_it_as_janus_does():
    """Tokens of each stream that a step asks for, by arm."""

    def step_tokens(arm: str) -> dict[str, float]:
        recipe = recipe_of(arm, 0, []).recipe
        fill, mix = recipe.batch.fill, recipe.mix
        assert fill is not None
        tokens = recipe.batch.rows * recipe.batch.row_tokens * fill
        shares = {"understanding": mix.understanding, "generation": mix.generation}
        return {name: round(tokens * share / sum(shares.values()), 6) for name, share in shares.items()}

    janus = step_tokens("D")
    assert step_tokens("A") == janus
    assert step_tokens("E") == {"understanding": janus["understanding"], "generation": 0}
    assert step_tokens("F") == {"understanding": 0, "generation": janus["generation"]}
    assert len({recipe_of(arm, 0, []).recipe.train.steps for arm in ARMS}) == 1

"""`janus data`: inspect shard sets before training.

Invariant: only the report is written; with `--json`, stdout holds one JSON object and nothing else.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import fsspec
import typer
from botocore.exceptions import BotoCoreError
from rich.console import Console
from rich.progress import track
from rich.text import Text

from janus_dist.cli.data_lines import diff_lines, info_lines, lint_lines
from janus_dist.config.load import load
from janus_dist.config.recipe import BaseRecipe, StageRecipe
from janus_dist.config.settings import OVERRIDE
from janus_dist.data.manifest import Manifest, ShardSet
from janus_dist.data.plan import Plan, open_shards
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import ConfigError, DataError
from janus_dist.inspection.compare import difference
from janus_dist.inspection.inspect import LocatedSample, chosen, number_of_key, read_samples, shard_set_folders, summary
from janus_dist.inspection.lint import Fault, Findings, Scope, ShardFindings, lint
from janus_dist.inspection.makers import check_vq, find_codes, find_tokenizer, need_tokenizer
from janus_dist.inspection.quarantine import lines_of_table, quarantine_folders, write_csv
from janus_dist.inspection.render import Piece, marked, pieces, visible
from janus_dist.monitor.console import print_json, several
from janus_dist.report.data import Paint, write_data_report

data_app = typer.Typer(no_args_is_help=True, help="Inspect shard sets: contents, faults, differences.")

Folder = Annotated[str, typer.Argument(metavar="FOLDER", help="A shard set, or a data.root; local or s3://.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed that selects the samples to read.")]
TokenizerPath = Annotated[
    Path | None, typer.Option("--tokenizer", help="The tokenizer.json of the shards; not needed for embedded ones.")
]
VqWeights = Annotated[
    Path | None, typer.Option("--vq-weights", help="The VQ weights of the shards; not needed for embedded ones.")
]

SAMPLE_OPTIONS = ("sample", "key", "number", "seed", "answers_only", "tokenizer")
"""Options of preview that need a FOLDER."""
ROW_OPTIONS = ("step", "row")
"""Options of preview that need --recipe."""
LEARNED = "bold green"
"""Style of text that the loss counts."""
MARKS = "[[ ]] marks what the loss counts"


@data_app.command("info")
def info(folder: Folder, as_json: AsJson = False) -> None:
    """Show what a shard set, or each shard set of a data.root, contains and how it was made."""
    with _reading(folder):
        summaries = [summary(ShardSet.open(path)) for path in shard_set_folders(folder)]
    if as_json:
        print_json({"shard_sets": summaries}, indent=1, sort_keys=True)
        return
    for values in summaries:
        print(f"{values['stream']}  {values['folder']}")
        for name, value in info_lines(values):
            print(f"  {name:<12} {value}")


@data_app.command("lint")
def lint_command(
    folder: Folder,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte instead of some samples.")] = False,
    samples: Annotated[int, typer.Option(min=0, help="Samples to read of each shard set without --deep.")] = 256,
    seed: Seed = 0,
    tokenizer: TokenizerPath = None,
    vq_weights: VqWeights = None,
    as_json: AsJson = False,
) -> None:
    """Check shard sets and list every fault; exits with 3 if a fault was found."""
    scope = Scope(deep, samples, seed)
    with _reading(folder):
        findings = {path: _lint(path, scope, tokenizer, vq_weights) for path in shard_set_folders(folder)}
    faults = sum(len(result.faults) for result in findings.values())
    if as_json:
        print_json(
            {"faults": faults, "shard_sets": [{"folder": path, **asdict(result)} for path, result in findings.items()]},
            indent=1,
            sort_keys=True,
        )
    else:
        for line in lint_lines(findings):
            print(line)
    if faults:
        raise DataError(f"{several(faults, 'fault')} in {folder}")


@data_app.command("preview")
def preview(
    context: typer.Context,
    folder: Annotated[str | None, typer.Argument(metavar="[FOLDER]", help="A shard set, or a data.root.")] = None,
    sample: Annotated[int | None, typer.Option(min=0, help="First sample to show, counted from 0.")] = None,
    key: Annotated[str | None, typer.Option(help="Key of the sample to show.")] = None,
    number: Annotated[int, typer.Option(min=1, help="Samples to show of each shard set.")] = 3,
    seed: Seed = 0,
    answers_only: Annotated[
        bool, typer.Option("--answers-only", help="Mark what the loss counts with train.answers_only.")
    ] = False,
    tokenizer: TokenizerPath = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe files and key=value of a stage, joined by `+`, to show a packed row.")
    ] = None,
    step: Annotated[int, typer.Option(min=0, help="With --recipe: step to show, counted from 0.")] = 0,
    row: Annotated[int, typer.Option(min=0, help="With --recipe: row of the step, counted from 0.")] = 0,
) -> None:
    """Show documents, or a packed row of a step, as in training, and mark what the loss counts."""
    if (folder is None) == (recipe is None):
        raise ConfigError(
            "preview shows samples of a FOLDER, or a packed row of a --recipe", "give exactly one of them"
        )
    _refuse_unused(context, SAMPLE_OPTIONS if recipe is not None else ROW_OPTIONS, recipe is not None)
    if sample is not None and key is not None:
        raise ConfigError("--sample and --key both name a sample", "give one of them")
    console = Console(highlight=False, soft_wrap=True)
    colored = console.is_terminal and not console.no_color
    legend = Text("green: what the loss counts", style=LEARNED) if colored else Text(MARKS)
    if recipe is not None:
        _show_row(console, colored, legend, recipe, step, row)
        return
    assert folder is not None
    with _reading(folder):
        shard_sets = [ShardSet.open(path) for path in shard_set_folders(folder)]
        indices = _sample_indices(folder, shard_sets, sample, key, number, seed)
        tokenizers = [need_tokenizer(shards.manifest, tokenizer) for shards in shard_sets]
        console.print(legend)
        for shards, shards_tokenizer, shown in zip(shard_sets, tokenizers, indices, strict=True):
            for shown_sample in read_samples(shards, shown):
                _show(console, colored, shards.manifest, shown_sample, shards_tokenizer, answers_only)


@data_app.command("diff")
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A shard set or a data.root.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another shard set or data.root.")],
    as_json: AsJson = False,
) -> None:
    """Show the differences between two shard sets: identity, settings, counts, samples."""
    with _reading(first, second):
        pairs, unpaired = _pairs(first, second)
        differences = {name: difference(ShardSet.open(old), ShardSet.open(new)) for name, (old, new) in pairs.items()}
    if as_json:
        print_json(
            {"only_in": unpaired, "shard_sets": {name: asdict(result) for name, result in differences.items()}},
            indent=1,
            sort_keys=True,
        )
        return
    for side, names in unpaired.items():
        for name in names:
            print(f"only in {side}: {name}")
    for name, result in differences.items():
        lines = list(diff_lines(result))
        print(f"{name}:" if lines else f"{name}: no difference")
        for line in lines:
            print(f"  {line}")


@data_app.command("quarantine")
def quarantine_command(
    folder: Folder,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all rows as CSV.")] = False,
    kind: Annotated[str | None, typer.Option(help="Only rows with this reason, for example `too small`.")] = None,
    number: Annotated[int, typer.Option(min=0, help="Rows to show of each input without --csv.")] = 20,
) -> None:
    """List the quarantined records with their reasons, also those of a failed job."""
    with _reading(folder):
        tables = quarantine_folders(folder)
        if as_csv:
            write_csv(tables, sys.stdout, kind)
            return
        for table in tables:
            for line in lines_of_table(table, kind, number):
                print(line)


@data_app.command("report")
def report(
    folder: Folder,
    out: Annotated[
        str | None, typer.Option("--out", help="Path of the page; FOLDER/data-report.html when absent.")
    ] = None,
    cards: Annotated[int, typer.Option(min=0, help="Samples to show of each shard set.")] = 12,
    seed: Seed = 0,
    tokenizer: TokenizerPath = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Recipe files joined by `+`, to show VQ ids as images.")
    ] = None,
    vq_weights: Annotated[
        Path | None, typer.Option("--vq-weights", help="VQ weights, if not the recipe's data.vq_weights.")
    ] = None,
) -> None:
    """Write one HTML page about shard sets and print its path."""
    if vq_weights is not None and recipe is None:
        raise ConfigError("--vq-weights needs the sizes of the VQ tokenizer", "give --recipe RECIPE.yaml too")
    with _reading(folder):
        shard_sets = [ShardSet.open(path) for path in shard_set_folders(folder)]
        tokenizers = [need_tokenizer(shards.manifest, tokenizer) for shards in shard_sets]
        paint = None if recipe is None else _painter(recipe, vq_weights, [shards.manifest for shards in shard_sets])
        page = out or f"{folder.rstrip('/') or '/'}/data-report.html"
        print(write_data_report(folder, list(zip(shard_sets, tokenizers, strict=True)), page, cards, seed, paint))


@contextmanager
def _reading(*folders: str) -> Iterator[None]:
    """Turn errors of a disk or store into DataError, and unusable URLs into ConfigError."""
    for folder in folders:
        try:
            fsspec.core.url_to_fs(folder)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"{folder} cannot be read: {error}", "give a local folder or an s3:// URL") from error
    try:
        yield
    except (OSError, BotoCoreError) as error:
        hint = "AWS_ENDPOINT_URL selects the store, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are the credentials"
        is_remote = any("://" in folder for folder in folders)
        raise DataError(f"{' or '.join(folders)} cannot be read: {error}", hint if is_remote else None) from error


def _lint(folder: str, scope: Scope, tokenizer: Path | None, vq_weights: Path | None) -> Findings:
    try:
        manifest = Manifest.load(folder)
    except DataError as error:
        return Findings([Fault(None, None, None, error.message, error.hint or "tokenize again")], 0, 0, 0, 0, [])
    vocabulary, codes = find_tokenizer(manifest, tokenizer), find_codes(manifest, vq_weights)
    return lint(folder, manifest, vocabulary, codes, scope, _track(manifest.stream))


def _track(description: str) -> Callable[[Iterable[ShardFindings], int], Iterable[ShardFindings]]:
    console = Console(stderr=True)
    return lambda findings, total: track(
        findings, description, total=total, console=console, transient=True, disable=not console.is_terminal
    )


def _sample_indices(
    folder: str, shard_sets: list[ShardSet], sample: int | None, key: str | None, number: int, seed: int
) -> list[list[int]]:
    """Return the indices of the samples to show for each shard set.

    Raises ConfigError for --sample with several shard sets, and DataError for a key that no sample has.
    """
    totals = [shards.manifest.samples for shards in shard_sets]
    if sample is not None:
        if len(shard_sets) > 1:
            raise ConfigError(
                f"{folder} holds {len(shard_sets)} shard sets, but --sample needs a single one",
                f"give {shard_sets[0].folder}",
            )
        return [list(range(sample, max(sample + 1, min(sample + number, totals[0]))))]
    if key is None:
        return [chosen(total, number, seed) for total in totals]
    indices = [number_of_key(shards, key) for shards in shard_sets]
    if all(index is None for index in indices):
        hint = "list keys with `tar -tf SHARD.tar` or read them in its block-N.json; or select a sample by --sample"
        raise DataError(f"no sample in {folder} has the key {key}", hint)
    return [[] if index is None else [index] for index in indices]


def _show(
    console: Console, colored: bool, manifest: Manifest, sample: LocatedSample, tokenizer: Tokenizer, answers_only: bool
) -> None:
    document = pieces(sample.sample, tokenizer, manifest.image_tokens)
    labels = sample.record["answer_labels" if answers_only else "text_labels"] + sample.record["image_ids"]
    title = (
        f"{manifest.stream} sample {sample.number} of {manifest.samples:,}, key {visible(sample.key)}, {sample.shard}"
    )
    console.print(Text(f"\n{title}: {sample.record['tokens']:,} tokens, the loss counts {labels:,}", style="bold"))
    console.print(_colored(document, answers_only) if colored else Text(marked(document, answers_only)))


def _refuse_unused(context: typer.Context, names: Sequence[str], is_row: bool) -> None:
    """Raise ConfigError when one of the named options, which have no effect here, was given."""
    sources = {name: context.get_parameter_source(name) for name in names}
    unused = [name for name, source in sources.items() if source is not None and source.name != "DEFAULT"]
    if not unused:
        return
    options = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
    if is_row:
        raise ConfigError(
            f"{options}: not allowed with --recipe", "select the row by --step and --row; the recipe defines the rest"
        )
    raise ConfigError(f"{options}: only allowed with --recipe", "give --recipe RECIPE.yaml instead of FOLDER")


def _show_row(console: Console, colored: bool, legend: Text, files: str, step: int, row: int) -> None:
    from janus_dist.inspection.row_view import view_row  # here, because both import torch, which takes seconds
    from janus_dist.train.compatible import check_data

    parts = files.split("+")
    loaded = load(
        StageRecipe,
        [Path(part) for part in parts if not OVERRIDE.match(part)],
        [part for part in parts if OVERRIDE.match(part)],
    ).recipe
    with _reading(*loaded.data.lanes.values()):
        shards = open_shards(loaded.data, loaded.mix)
        tokenizer = Tokenizer.load(loaded.data.tokenizer)
        check_data(loaded, tokenizer, shards)
        plan = Plan.of(loaded, shards)
        view = view_row(loaded, plan, tokenizer, step, row)
    console.print(legend)
    console.print(Text(view.summary(loaded.batch.row_tokens), style="bold"))
    for document in view.documents:
        console.print(Text(f"\n{document.title}", style="bold"))
        console.print(_colored(document.pieces, False) if colored else Text(marked(document.pieces, False)))


def _colored(document: list[Piece], answers_only: bool) -> Text:
    text = Text()
    for piece in document:
        text.append(piece.text, style=LEARNED if piece.counts(answers_only) else "dim" if piece.kind != "text" else "")
    return text


def _pairs(first: str, second: str) -> tuple[dict[str, tuple[str, str]], dict[str, list[str]]]:
    """Return the pairs of shard sets to compare, by name, and for each side the names that only it has.

    Raises ConfigError when the two sides have no shard set in common.
    """
    sides = [shard_set_folders(folder) for folder in (first, second)]
    if len(sides[0]) == len(sides[1]) == 1:
        return {sides[0][0].rsplit("/", 1)[-1]: (sides[0][0], sides[1][0])}, {first: [], second: []}
    old, new = ({path.rsplit("/", 1)[-1]: path for path in side} for side in sides)
    if not set(old) & set(new):
        raise ConfigError(
            f"nothing to compare: {first} holds {', '.join(old)} and {second} holds {', '.join(new)}",
            "give two shard sets, or two folders with shard sets of the same names",
        )
    unpaired = {first: [name for name in old if name not in new], second: [name for name in new if name not in old]}
    return {name: (path, new[name]) for name, path in old.items() if name in new}, unpaired


def _painter(files: str, weights: Path | None, manifests: list[Manifest]) -> Paint:
    """Return the function that decodes VQ ids to images with the recipe's VQ tokenizer.

    Raises DataError when the shards were made with another one.
    """
    from janus_dist.inspection.paint import painter  # here, because the import takes 5 s

    recipe = load(BaseRecipe, [Path(file) for file in files.split("+")], []).recipe
    path = weights or Path(recipe.data.vq_weights)
    paint = painter(recipe.model, path)
    for manifest in manifests:
        check_vq(manifest, path)
    return paint

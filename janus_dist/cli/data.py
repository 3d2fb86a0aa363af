"""`janus data`: look at shard sets before they are trained on.

Invariant: nothing is written but the report; with `--json`, stdout holds one JSON object and nothing else.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import fsspec
import typer
from botocore.exceptions import BotoCoreError
from rich.console import Console
from rich.progress import track
from rich.text import Text

from janus_dist.config.load import load
from janus_dist.config.recipe import BaseRecipe, StageRecipe
from janus_dist.config.settings import OVERRIDE
from janus_dist.data.manifest import Manifest, ShardSet
from janus_dist.data.plan import Plan, open_shards
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import ConfigError, DataError
from janus_dist.inspection.compare import Difference, difference
from janus_dist.inspection.inspect import Found, chosen, number_of_key, read_samples, shard_set_folders, summary
from janus_dist.inspection.lint import Fault, Findings, Scope, ShardFindings, lint
from janus_dist.inspection.makers import check_vq, find_codes, find_tokenizer, need_tokenizer
from janus_dist.inspection.quarantine import lines_of_table, quarantine_folders, write_csv
from janus_dist.inspection.render import Piece, marked, pieces, visible
from janus_dist.monitor.console import count, print_json
from janus_dist.report.data import Paint, write_data_report

data_app = typer.Typer(no_args_is_help=True, help="Look at shard sets: what they hold, whether they are sound.")

Folder = Annotated[str, typer.Argument(metavar="FOLDER", help="A shard set, or a data.root; local or s3://.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Draws the samples that are looked at.")]
TokenizerPath = Annotated[
    Path | None, typer.Option("--tokenizer", help="The tokenizer.json of the shards; embedded ones are found.")
]
VqWeights = Annotated[
    Path | None, typer.Option("--vq-weights", help="The VQ weights of the shards; embedded ones are found.")
]

OF_SAMPLES = ("sample", "key", "number", "seed", "answers_only", "tokenizer")
OF_ROWS = ("step", "row")
"""Options of preview that mean something with a FOLDER, or with --recipe, alone."""
LEARNED = "bold green"
MARKS = "[[ ]] stands around what the loss counts"


@data_app.command("info")
def info(folder: Folder, as_json: AsJson = False) -> None:
    """Say what a shard set, or each one of a data.root, holds and what made it."""
    with _reading(folder):
        found = [summary(ShardSet.open(each)) for each in shard_set_folders(folder)]
    if as_json:
        print_json({"shard_sets": found}, indent=1, sort_keys=True)
        return
    for values in found:
        print(f"{values['stream']}  {values['folder']}")
        for name, value in _info_lines(values):
            print(f"  {name:<12} {value}")


@data_app.command("lint")
def lint_command(
    folder: Folder,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte rather than some samples.")] = False,
    samples: Annotated[int, typer.Option(min=0, help="Samples read of each shard set without --deep.")] = 256,
    seed: Seed = 0,
    tokenizer: TokenizerPath = None,
    vq_weights: VqWeights = None,
    as_json: AsJson = False,
) -> None:
    """Check shard sets and list every fault; ends with 3 when there is one."""
    scope = Scope(deep, samples, seed)
    with _reading(folder):
        found = {each: _lint(each, scope, tokenizer, vq_weights) for each in shard_set_folders(folder)}
    number = sum(len(each.faults) for each in found.values())
    if as_json:
        print_json(
            {"faults": number, "shard_sets": [{"folder": key, **asdict(each)} for key, each in found.items()]},
            indent=1,
            sort_keys=True,
        )
    else:
        for line in _lint_lines(found):
            print(line)
    if number:
        raise DataError(f"{_plural(number, 'fault')} in {folder}")


@data_app.command("preview")
def preview(
    context: typer.Context,
    folder: Annotated[str | None, typer.Argument(metavar="[FOLDER]", help="A shard set, or a data.root.")] = None,
    sample: Annotated[int | None, typer.Option(min=0, help="Begin with this sample, counted from 0.")] = None,
    key: Annotated[str | None, typer.Option(help="Show the sample with this key.")] = None,
    number: Annotated[int, typer.Option(min=1, help="Samples shown of each shard set.")] = 3,
    seed: Seed = 0,
    answers_only: Annotated[bool, typer.Option("--answers-only", help="As with train.answers_only.")] = False,
    tokenizer: TokenizerPath = None,
    recipe: Annotated[
        str | None, typer.Option(help="A stage's files and key=value, joined by `+`: show a packed row instead.")
    ] = None,
    step: Annotated[int, typer.Option(min=0, help="With --recipe: which step, counted from 0.")] = 0,
    row: Annotated[int, typer.Option(min=0, help="With --recipe: which row of the step, counted from 0.")] = 0,
) -> None:
    """Show documents, or a packed row of a step, as training sees them, with what the loss counts marked."""
    if (folder is None) == (recipe is None):
        raise ConfigError(
            "preview shows samples of a FOLDER, or a packed row of a --recipe", "give one of them, and only one"
        )
    _refuse_unused(context, OF_SAMPLES if recipe is not None else OF_ROWS, recipe is not None)
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
        opened = [ShardSet.open(each) for each in shard_set_folders(folder)]
        numbers = _numbers(folder, opened, sample, key, number, seed)
        tokenizers = [need_tokenizer(shards.manifest, tokenizer) for shards in opened]
        console.print(legend)
        for shards, vocabulary, wanted in zip(opened, tokenizers, numbers, strict=True):
            for found in read_samples(shards, wanted):
                _show(console, colored, shards.manifest, found, vocabulary, answers_only)


@data_app.command("diff")
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A shard set or a data.root.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    as_json: AsJson = False,
) -> None:
    """Say what differs between two shard sets: identity, settings, counts, samples."""
    with _reading(first, second):
        pairs, lone = _pairs(first, second)
        found = {name: difference(ShardSet.open(one), ShardSet.open(two)) for name, (one, two) in pairs.items()}
    if as_json:
        print_json(
            {"only_in": lone, "shard_sets": {name: asdict(each) for name, each in found.items()}},
            indent=1,
            sort_keys=True,
        )
        return
    for side, names in lone.items():
        for name in names:
            print(f"only in {side}: {name}")
    for name, each in found.items():
        lines = list(_diff_lines(each))
        print(f"{name}:" if lines else f"{name}: no difference")
        for line in lines:
            print(f"  {line}")


@data_app.command("quarantine")
def quarantine_command(
    folder: Folder,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all rows as CSV.")] = False,
    kind: Annotated[str | None, typer.Option(help="Only rows of this kind of reason, as `too small`.")] = None,
    number: Annotated[int, typer.Option(min=0, help="Rows shown of each input without --csv.")] = 20,
) -> None:
    """List the records that the pipelines refused, with the reason of each; also of a run that failed."""
    with _reading(folder):
        tables = quarantine_folders(folder)
        if as_csv:
            write_csv(tables, sys.stdout, kind)
            return
        for each in tables:
            for line in lines_of_table(each, kind, number):
                print(line)


@data_app.command("report")
def report(
    folder: Folder,
    out: Annotated[
        str | None, typer.Option("--out", help="Where the page goes; FOLDER/data-report.html without it.")
    ] = None,
    cards: Annotated[int, typer.Option(min=0, help="Samples shown of each shard set.")] = 12,
    seed: Seed = 0,
    tokenizer: TokenizerPath = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Files joined by `+`, with the model: VQ ids are shown as images.")
    ] = None,
    vq_weights: Annotated[
        Path | None, typer.Option("--vq-weights", help="VQ weights, if not the recipe's data.vq_weights.")
    ] = None,
) -> None:
    """Write one HTML page about shard sets and print its path."""
    if vq_weights is not None and recipe is None:
        raise ConfigError("--vq-weights needs the sizes of the VQ tokenizer", "give --recipe RECIPE.yaml too")
    with _reading(folder):
        opened = [ShardSet.open(each) for each in shard_set_folders(folder)]
        tokenizers = [need_tokenizer(shards.manifest, tokenizer) for shards in opened]
        paint = None if recipe is None else _painter(recipe, vq_weights, [shards.manifest for shards in opened])
        page = out or f"{folder.rstrip('/') or '/'}/data-report.html"
        print(write_data_report(folder, list(zip(opened, tokenizers, strict=True)), page, cards, seed, paint))


@contextmanager
def _reading(*folders: str) -> Iterator[None]:
    """What a store or a disk refuses is an error about the data."""
    for folder in folders:
        try:
            fsspec.core.url_to_fs(folder)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"{folder} cannot be read: {error}", "give a local folder or an s3:// URL") from error
    try:
        yield
    except (OSError, BotoCoreError) as error:
        hint = "AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY say which store is asked, and as whom"
        remote = any("://" in folder for folder in folders)
        raise DataError(f"{' or '.join(folders)} cannot be read: {error}", hint if remote else None) from error


def _info_lines(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "samples", f"{values['samples']:,}"
    quantiles = values["token_quantiles"]
    named = [("0", "shortest"), ("0.5", "median"), ("0.9", "90 %"), ("0.99", "99 %"), ("1", "longest")]
    lengths = ", ".join(f"{name} {quantiles[share]:,}" for share, name in named if share in quantiles)
    yield "tokens", f"{values['tokens']:,}" + (f" ({lengths})" if lengths else "")
    labels, side = values["labels"], values["image_size"]
    with_answers_only = f" ({labels['answer']:,} with train.answers_only)" if labels["answer"] != labels["text"] else ""
    yield "text labels", f"{labels['text']:,}{with_answers_only}"
    if values["images"]:
        yield "images", f"{values['images']:,} of {side}x{side} pixels, {values['image_tokens']} tokens each"
    if values["vq_ids"]:
        yield "VQ ids", f"{values['vq_ids']:,}, {values['image_ids']} an image of {side}x{side} pixels"
    yield "shards", f"{values['shards']:,}, {count(values['bytes'])}B"
    reasons = ", ".join(f"{kind} {number:,}" for kind, number in values["quarantined"]["reasons"].items())
    yield "quarantined", f"{values['quarantined']['count']:,}" + (f" ({reasons})" if reasons else "")
    yield "digest", values["digest"]
    yield "tokenizer", values["tokenizer_sha256"]
    yield "VQ weights", values["vq_sha256"] or "none"
    for place, (name, value) in enumerate(sorted(values["settings"].items())):
        yield "" if place else "settings", f"{name}={json.dumps(value)}"


def _lint(folder: str, scope: Scope, tokenizer: Path | None, vq_weights: Path | None) -> Findings:
    try:
        manifest = Manifest.load(folder)
    except DataError as error:
        return Findings([Fault(None, None, None, error.message, error.hint or "tokenize again")], 0, 0, 0, 0, [])
    found, codes = find_tokenizer(manifest, tokenizer), find_codes(manifest, vq_weights)
    return lint(folder, manifest, found, codes, scope, _track(manifest.stream))


def _track(what: str) -> Callable[[Iterable[ShardFindings], int], Iterable[ShardFindings]]:
    console = Console(stderr=True)
    return lambda found, total: track(
        found, what, total=total, console=console, transient=True, disable=not console.is_terminal
    )


def _lint_lines(found: dict[str, Findings]) -> Iterator[str]:
    number = 0
    for folder, each in found.items():
        yield folder
        for fault in each.faults:
            number += 1
            sample = "" if fault.sample is None else f", sample {fault.sample}"
            key = "" if fault.key is None else f", key {visible(fault.key)}"
            yield f"  {number}. {fault.shard or 'the shard set'}{sample}{key}: {fault.what}"
            yield f"     {fault.do}"
        yield f"  {_plural(len(each.faults), 'fault')}; checked {_plural(each.shards, 'shard')}"
        yield f"  read {each.samples_read:,} of {_plural(each.samples, 'sample')}, {count(each.bytes_read)}B"
        for left in each.not_checked:
            yield f"  not checked: {left}"


def _plural(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _numbers(
    folder: str, opened: list[ShardSet], sample: int | None, key: str | None, number: int, seed: int
) -> list[list[int]]:
    """For each shard set the samples to show."""
    totals = [shards.manifest.samples for shards in opened]
    if sample is not None:
        if len(opened) > 1:
            raise ConfigError(
                f"{folder} holds {len(opened)} shard sets, and --sample counts in one", f"give {opened[0].folder}"
            )
        return [list(range(sample, max(sample + 1, min(sample + number, totals[0]))))]
    if key is None:
        return [chosen(total, number, seed) for total in totals]
    numbers = [number_of_key(shards, key) for shards in opened]
    if all(found is None for found in numbers):
        hint = "keys are listed by `tar -tf SHARD.tar`, or in its block-N.json; or show one by --sample"
        raise DataError(f"no sample in {folder} has the key {key}", hint)
    return [[] if found is None else [found] for found in numbers]


def _show(
    console: Console, colored: bool, manifest: Manifest, found: Found, tokenizer: Tokenizer, answers_only: bool
) -> None:
    document = pieces(found.sample, tokenizer, manifest.image_tokens)
    labels = found.record["answer_labels" if answers_only else "text_labels"] + found.record["image_ids"]
    title = f"{manifest.stream} sample {found.number} of {manifest.samples:,}, key {visible(found.key)}, {found.shard}"
    console.print(Text(f"\n{title}: {found.record['tokens']:,} tokens, the loss counts {labels:,}", style="bold"))
    console.print(_colored(document, answers_only) if colored else Text(marked(document, answers_only)))


def _refuse_unused(context: typer.Context, names: Sequence[str], is_row: bool) -> None:
    """ConfigError when options were given that say nothing about what is shown."""
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source is not None and source.name != "DEFAULT"]
    if not given:
        return
    options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    if is_row:
        raise ConfigError(f"{options}: not with --recipe", "--step and --row say which row, the recipe says the rest")
    raise ConfigError(f"{options}: only with --recipe", "give --recipe RECIPE.yaml in place of FOLDER")


def _show_row(console: Console, colored: bool, legend: Text, files: str, step: int, row: int) -> None:
    from janus_dist.inspection.row_view import view_row  # both import torch, which no other command has to wait for
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
        found = view_row(loaded, plan, tokenizer, step, row)
    console.print(legend)
    console.print(Text(found.summary(loaded.batch.row_tokens), style="bold"))
    for document in found.documents:
        console.print(Text(f"\n{document.title}", style="bold"))
        console.print(_colored(document.pieces, False) if colored else Text(marked(document.pieces, False)))


def _colored(document: list[Piece], answers_only: bool) -> Text:
    text = Text()
    for piece in document:
        text.append(piece.text, style=LEARNED if piece.counts(answers_only) else "dim" if piece.kind != "text" else "")
    return text


def _pairs(first: str, second: str) -> tuple[dict[str, tuple[str, str]], dict[str, list[str]]]:
    """Shard sets to compare, by name, and for each side those that only it has."""
    sides = [shard_set_folders(folder) for folder in (first, second)]
    if len(sides[0]) == len(sides[1]) == 1:
        return {sides[0][0].rsplit("/", 1)[-1]: (sides[0][0], sides[1][0])}, {first: [], second: []}
    one, two = ({each.rsplit("/", 1)[-1]: each for each in side} for side in sides)
    if not set(one) & set(two):
        raise ConfigError(
            f"nothing to compare: {first} holds {', '.join(one)} and {second} holds {', '.join(two)}",
            "give two shard sets, or two folders with shard sets of the same names",
        )
    lone = {first: [name for name in one if name not in two], second: [name for name in two if name not in one]}
    return {name: (each, two[name]) for name, each in one.items() if name in two}, lone


def _diff_lines(each: Difference) -> Iterator[str]:
    for name, old, new in each.values:
        yield f"{name}: {json.dumps(old)} -> {json.dumps(new)}"
    sides = [("only in the first", each.only_first), ("only in the second", each.only_second)]
    for where, keys in [*sides, ("in both with other bytes", each.changed)]:
        if keys.count:
            more = ", ..." if keys.count > len(keys.first) else ""
            yield f"samples {where}: {keys.count:,} (keys {', '.join(map(visible, keys.first))}{more})"


def _painter(files: str, weights: Path | None, manifests: list[Manifest]) -> Paint:
    """From VQ ids to images, by the recipe's VQ tokenizer; DataError when the shards were made with another."""
    from janus_dist.inspection.paint import painter  # 5 s to import, which no other command has to wait for

    recipe = load(BaseRecipe, [Path(file) for file in files.split("+")], []).recipe
    path = weights or Path(recipe.data.vq_weights)
    paint = painter(recipe.model, path)
    for manifest in manifests:
        check_vq(manifest, path)
    return paint

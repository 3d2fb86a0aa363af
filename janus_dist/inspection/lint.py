"""Checks of a shard set: each thing that training would trip over, found before and named with its shard and key.

Invariant: a damaged shard set gives a list of faults, never an exception; what was not looked at is said.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from janus_dist.data.keys import keys_in_tar, shard_keys
from janus_dist.data.manifest import Manifest
from janus_dist.data.shard import ShardEntry, read_index
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import DataError
from janus_dist.inspection.inspect import QUARANTINE, chosen, key_digest, quarantine
from janus_dist.inspection.lint_sample import AGAIN, Issue, Rules, check_sample
from janus_dist.storage import fs

WORKERS = 4
WHOLE_SET = "delete manifest.json and run jobs/prepare.py: it makes what is missing and writes the manifest again"
STRAY = "delete it, or tokenize into an empty folder: a plain WebDataset reader would take it for data"
TWICE = "trained on twice: give each item of the source a key of its own and tokenize again"


@dataclass(frozen=True)
class Fault:
    """Something wrong, where it is, and what to do."""

    shard: str | None
    sample: int | None
    """Index in the shard set."""
    key: str | None
    what: str
    do: str


@dataclass
class ShardFindings:
    """What was found in one shard, and how much was looked at."""

    faults: list[Fault] = field(default_factory=list)
    samples_read: int = 0
    bytes_read: int = 0
    key_digests: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    """[sample] of a shard that was read whole."""


@dataclass(frozen=True)
class Findings:
    """What was found in a shard set, and how much was looked at."""

    faults: list[Fault]
    shards: int
    samples: int
    samples_read: int
    bytes_read: int
    not_checked: list[str]


@dataclass(frozen=True)
class Scope:
    """How much to look at: all bytes, or `samples` samples drawn by `seed`."""

    deep: bool = False
    samples: int = 256
    seed: int = 0


Track = Callable[[Iterable[ShardFindings], int], Iterable[ShardFindings]]


def lint(
    folder: str,
    manifest: Manifest,
    tokenizer: Tokenizer | None,
    codes: int | None,
    scope: Scope,
    track: Track = lambda found, _: found,
) -> Findings:
    """Check the shard set in FOLDER against its manifest.

    Without a tokenizer ids are not checked, without `codes` (how many the VQ tokenizer has) the range of VQ ids is
    not. `track` passes on the findings of each shard, of which it is told the number, and may show progress.
    """
    rules = Rules(manifest, tokenizer, codes)
    check = partial(_check_shard, folder, rules, scope.deep)
    with ThreadPoolExecutor(max_workers=WORKERS, thread_name_prefix="lint") as pool:
        passed = pool.map(check, range(len(manifest.shards)), _first_samples(manifest), _rows(manifest, scope))
        found = list(track(passed, len(manifest.shards)))
    faults = [*_check_set(folder, manifest), *(fault for shard in found for fault in shard.faults)]
    if scope.deep:
        faults += _repeated(folder, manifest, [shard.key_digests for shard in found])
    read = sum(shard.samples_read for shard in found)
    return Findings(
        faults,
        len(manifest.shards),
        manifest.samples,
        read,
        sum(shard.bytes_read for shard in found),
        list(_not_checked(rules, scope, manifest.samples - read)),
    )


def _first_samples(manifest: Manifest) -> list[int]:
    """Return [shard] number of its first sample."""
    return manifest.shards.first_samples[:-1].tolist()


def _rows(manifest: Manifest, scope: Scope) -> Iterator[NDArray[np.int64]]:
    """Yield for each shard the rows of the drawn samples in it."""
    total = sum(entry.samples for entry in manifest.shards)
    drawn = np.array([] if scope.deep else chosen(total, scope.samples, scope.seed), dtype=np.int64)
    for entry, first in zip(manifest.shards, _first_samples(manifest), strict=True):
        yield drawn[(drawn >= first) & (drawn < first + entry.samples)] - first


def _not_checked(rules: Rules, scope: Scope, left: int) -> Iterator[str]:
    if not scope.deep:
        yield f"{left:,} samples, digests and keys of shards (--deep reads all)"
    elif left:
        yield f"{left:,} samples of shards that cannot be read"
    if rules.tokenizer is None:
        yield f"token ids (give --tokenizer, with sha256 {rules.manifest.tokenizer_sha256[:12]})"
    if rules.manifest.vq_sha256 is not None and rules.codes is None:
        yield f"range of VQ ids (give --vq-weights, with sha256 {rules.manifest.vq_sha256[:12]})"


def _check_set(folder: str, manifest: Manifest) -> Iterator[Fault]:
    """Yield faults of the set as a whole."""
    for name in ("samples", "tokens"):
        total, said = sum(getattr(entry, name) for entry in manifest.shards), getattr(manifest, name)
        if total != said:
            what = f"the manifest says {said:,} {name}, its shards add up to {total:,}"
            yield Fault(None, None, None, what, WHOLE_SET)
    listed = Counter(entry.name for entry in manifest.shards)
    for name in (name for name, times in listed.items() if times > 1):
        yield Fault(name, None, None, "the manifest lists it more than once", WHOLE_SET)
    names = fs.names(folder)
    for name in names:
        if name.endswith(".tar") and name.removesuffix(".tar") not in listed:
            yield Fault(name.removesuffix(".tar"), None, None, "the manifest does not list it", STRAY)
    try:
        refused = sum(reject.records for reject in quarantine(folder))
    except DataError as error:
        yield Fault(None, None, None, error.message, WHOLE_SET)
        return
    if QUARANTINE in names and refused != manifest.quarantined:
        what = f"the manifest says {manifest.quarantined:,} quarantined, the quarantine table has {refused:,}"
        yield Fault(None, None, None, what, WHOLE_SET)


def _check_shard(
    folder: str, rules: Rules, deep: bool, number: int, first_sample: int, rows: NDArray[np.int64]
) -> ShardFindings:
    """Check one shard and the samples in some of its rows, in all of them if `deep`."""
    entry, found = rules.manifest.shards[number], ShardFindings()
    rows = np.arange(entry.samples) if deep else rows
    index, issues = _check_index(folder, entry, found)
    keys: list[str] | None = None
    path = f"{folder}/{entry.name}.tar"
    try:
        size = fs.size(path)
        if size is None:
            issues.append(Issue("the tar is missing", AGAIN))
        elif size != entry.bytes:
            issues.append(Issue(f"the tar has {size:,} bytes, the manifest says {entry.bytes:,}", AGAIN))
        elif deep:
            content = fs.read(path)
            found.bytes_read += len(content)
            keys, about_content = _check_content(content, rules, entry)
            found.key_digests = np.array([key_digest(key) for key in keys], dtype=np.uint64)
            issues += about_content + _check_rows(io.BytesIO(content), index, rows, rules, found)
        elif len(rows):
            with fs.open_binary(path) as file:
                issues += _check_rows(file, index, rows, rules, found)
            found.bytes_read += 0 if index is None else int(index["bytes"][rows].astype(np.int64).sum())
    except OSError as error:
        issues.append(Issue(f"the tar cannot be read: {error}", AGAIN))
    if keys is None and any(issue.row is not None for issue in issues):
        keys = _keys(folder, rules.manifest, number)
    found.faults += [_fault(entry.name, issue, first_sample, keys or ()) for issue in issues]
    return found


def _fault(shard: str, issue: Issue, first_sample: int, keys: Sequence[str]) -> Fault:
    """Return an issue as a fault of the set, with the number and the key of its sample where these are known."""
    if issue.row is None:
        return Fault(shard, None, None, issue.what, issue.do)
    key = keys[issue.row] if issue.row < len(keys) else None
    return Fault(shard, first_sample + issue.row, key, issue.what, issue.do)


def _check_index(folder: str, entry: ShardEntry, found: ShardFindings) -> tuple[NDArray[np.void] | None, list[Issue]]:
    """Return the index, if samples can be looked up by it, and add its faults."""
    try:
        content = fs.read(f"{folder}/{entry.name}.index.npy")
        index = read_index(content)
    except FileNotFoundError:
        return None, [Issue("the index is missing", AGAIN)]
    except (OSError, ValueError) as error:
        return None, [Issue(f"the index cannot be read: {error}", AGAIN)]
    found.bytes_read += len(content)
    if len(index) != entry.samples:
        return None, [Issue(f"the index has {len(index):,} samples, the manifest says {entry.samples:,}", AGAIN)]
    issues = []
    tokens = int(index["tokens"].astype(np.int64).sum())
    if tokens != entry.tokens:
        issues.append(Issue(f"the index counts {tokens:,} tokens, the manifest says {entry.tokens:,}", AGAIN))
    if hashlib.sha256(content).hexdigest() != entry.index_sha256:
        issues.append(Issue("the index has another sha256 than the manifest says", AGAIN))
    starts = index["offset"].astype(np.int64)
    ends = starts + index["bytes"].astype(np.int64)
    outside = int(((starts < 0) | (ends > entry.bytes)).sum())
    if outside:
        issues.append(Issue(f"samples that the index places outside the tar: {outside:,}", AGAIN))
        return None, issues
    if (starts[1:] < ends[:-1]).any():
        issues.append(Issue("the index places samples over one another", AGAIN))
    return index, issues


def _check_content(content: bytes, rules: Rules, entry: ShardEntry) -> tuple[list[str], list[Issue]]:
    """Return the keys of a shard that was read whole, and what is wrong with it."""
    issues = []
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        issues.append(Issue("the tar has another sha256 than the manifest says", AGAIN))
    try:
        keys = keys_in_tar(io.BytesIO(content), rules.manifest.stream)
    except ValueError as error:
        return [], [*issues, Issue(str(error), AGAIN)]
    if len(keys) != entry.samples:
        issues.append(Issue(f"the tar has {len(keys):,} keys, the manifest says {entry.samples:,} samples", AGAIN))
    return keys, issues


def _check_rows(
    file: BinaryIO, index: NDArray[np.void] | None, rows: NDArray[np.int64], rules: Rules, found: ShardFindings
) -> list[Issue]:
    """Return the faults of the samples in some rows."""
    issues: list[Issue] = []
    if index is None:
        return issues
    for row in rows.tolist():
        record: Any = index[row]
        file.seek(int(record["offset"]))
        payload = file.read(int(record["bytes"]))
        found.samples_read += 1
        issues += [Issue(issue.what, issue.do, row) for issue in check_sample(payload, record, rules)]
    return issues


def _keys(folder: str, manifest: Manifest, shard: int) -> list[str]:
    try:
        return shard_keys(folder, manifest, shard)
    except DataError:
        return []


def _repeated(folder: str, manifest: Manifest, digests: list[NDArray[np.uint64]]) -> Iterator[Fault]:
    """Yield a fault for every use of a key after its first one; `digests` are those of each shard's keys."""
    joined = np.concatenate([np.empty(0, dtype=np.uint64), *digests])
    ends = np.cumsum([len(each) for each in digests])
    order = np.argsort(joined, kind="stable")
    ordered = joined[order]
    again = order[np.flatnonzero(ordered[1:] == ordered[:-1]) + 1]
    read: dict[int, list[str]] = {}
    for place in np.sort(again).tolist():
        before = int(order[np.searchsorted(ordered, joined[place])])
        shard, shard_before = np.searchsorted(ends, [place, before], side="right").tolist()
        row = place - int(ends[shard]) + len(digests[shard])
        read = read if shard in read else {shard: _keys(folder, manifest, shard)}
        sample = _first_samples(manifest)[shard] + row
        what = f"its key was used before, in {manifest.shards[shard_before].name}"
        yield Fault(manifest.shards[shard].name, sample, read[shard][row], what, TWICE)

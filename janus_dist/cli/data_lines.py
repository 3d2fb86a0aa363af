"""Lines that `janus data` prints for people."""

import json
from collections.abc import Iterator
from typing import Any

from janus_dist.inspection.compare import ShardSetDifference
from janus_dist.inspection.lint import Findings
from janus_dist.inspection.render import visible
from janus_dist.monitor.console import count, several


def info_lines(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the (name, value) lines about a shard set; `values` is its summary."""
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
    for index, (name, value) in enumerate(sorted(values["settings"].items())):
        yield "" if index else "settings", f"{name}={json.dumps(value)}"


def lint_lines(findings: dict[str, Findings]) -> Iterator[str]:
    """Yield the lines about the faults of shard sets, by folder, numbered through."""
    index = 0
    for folder, result in findings.items():
        yield folder
        for fault in result.faults:
            index += 1
            sample = "" if fault.sample is None else f", sample {fault.sample}"
            key = "" if fault.key is None else f", key {visible(fault.key)}"
            yield f"  {index}. {fault.shard or 'the shard set'}{sample}{key}: {fault.what}"
            yield f"     {fault.do}"
        yield f"  {several(len(result.faults), 'fault')}; checked {several(result.shards, 'shard')}"
        yield f"  read {result.samples_read:,} of {several(result.samples, 'sample')}, {count(result.bytes_read)}B"
        for note in result.not_checked:
            yield f"  not checked: {note}"


def diff_lines(result: ShardSetDifference) -> Iterator[str]:
    """Yield the lines about the differences between two shard sets."""
    for name, old, new in result.values:
        yield f"{name}: {json.dumps(old)} -> {json.dumps(new)}"
    sides = [("only in the first", result.only_first), ("only in the second", result.only_second)]
    for where, keys in [*sides, ("in both with other bytes", result.changed)]:
        if keys.count:
            more = ", ..." if keys.count > len(keys.first) else ""
            yield f"samples {where}: {keys.count:,} (keys {', '.join(map(visible, keys.first))}{more})"

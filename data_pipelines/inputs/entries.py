"""Conversion of the values of an entry (columns of a table, keys of a JSON object) to a record.

The names are those of the tools that write such files: img2dataset, LLaVA, the Hugging Face hub, OpenAI's messages.
Invariant: any values give a record or a DataError.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from data_pipelines.inputs import marks, media
from data_pipelines.inputs.account import NOT_USED, Account, check_editing
from data_pipelines.inputs.conversation import IMAGES, Conversation, ConversationReader, as_list
from data_pipelines.inputs.files import image_folder, mean_size_of_others, short
from data_pipelines.inputs.keys import drawn, safe_key
from data_pipelines.inputs.marks import Mark
from data_pipelines.inputs.media import Origin
from data_pipelines.inputs.values import LONGEST_SHOWN, kind, words
from data_pipelines.record import Picture, Record, Unit
from janus_dist.config.pipeline import InputConfig
from janus_dist.errors import DataError, RecordError
from janus_dist.inspection.inspect import Reject
from janus_dist.storage import fs

NAMES: Mapping[str, tuple[str, ...]] = {
    "image": IMAGES,
    "caption": ("caption", "text", "TEXT", "prompt"),
    "text": ("text", "content"),
    "turns": ("conversations", "messages"),
    "system": ("system", "system_prompt"),
}
"""Names under which a value is looked for, in this order, unless `columns` names another."""
LONGEST_TEXT_BYTES = 16 * 2**20
"""Most bytes of a line or a member that is parsed: JSON takes up to twenty times as much memory."""
HEAD_BYTES = 64
"""First bytes of a refused entry that are kept for people to look at."""
UNUSED = {
    "turns": "captions and texts are used, not conversations",
    "caption": "the conversation or the text is used",
    "text": "the conversation or the caption is used",
    "system": "there is no conversation with roles",
}
"""Why a kind of value is not used."""
SCALARS = (str, int, float, bool, Decimal, date, time, timedelta)
"""Types of values that are columns for `where`; `date` includes time stamps."""


class LostError(RecordError):
    """Several records that cannot be read, for which there is one reject."""

    def __init__(self, kind: str, detail: str, loss: "Loss"):
        super().__init__(kind, f"{detail}{loss.words}")
        self.loss = loss


@dataclass(frozen=True)
class Loss:
    """The number of records that a damage costs."""

    records: int
    at_least: bool = False
    """Whether more records may be lost, an unknown number."""
    words: str = ""
    """What the reason adds about the number."""


def lost(unread_bytes: int, read_bytes: int, records: int, usual_bytes: int) -> int:
    """Estimate how many records are in bytes that cannot be read, at least one.

    The mean size is that of the `records` in the bytes that could be read, or the usual size where those hold none.
    """
    mean_bytes = read_bytes / records if records else usual_bytes
    return max(1, round(unread_bytes / max(1, mean_bytes)))


def lost_at_end(
    config: InputConfig, endings: Sequence[str], unit: Unit, records: int, is_between_records: bool = False
) -> Loss:
    """Estimate what is lost of a file that was cut short, after `records` that could be read.

    The estimate uses the statistics that img2dataset writes next to a tar, else the mean size of the input's other
    files; but not for a file that ends between two records, which may be complete but for the end mark.
    """
    path = unit.path.removesuffix(
        max((ending for ending in endings if unit.path.endswith(ending)), key=len, default="")
    )
    with suppress(OSError, ValueError, KeyError, TypeError):
        lost_records = int(json.loads(fs.read(f"{path}_stats.json"))["successes"]) - records
        return Loss(max(1, lost_records), words=f"; {path}_stats.json counts {max(0, lost_records)} more")
    mean_bytes = None if is_between_records else mean_size_of_others(config, endings, unit.path)
    if mean_bytes is None or mean_bytes <= unit.size or not records:
        return Loss(1, True, "; how many records are lost behind that is unknown, 1 is counted")
    lost_records = lost(round(mean_bytes) - unit.size, unit.size, records, 0)
    return Loss(
        lost_records, words=f"; {lost_records} lost by the mean size of the other files, {round(mean_bytes)} bytes"
    )


def records(
    config: InputConfig,
    unit: Unit,
    rows: Iterable[tuple[int, Mapping[str, Any] | DataError, bytes]],
    unread: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Record | Reject]:
    """Yield the records of the rows of a table, and a Reject for each row that is not a record.

    `rows`: (position in the file, values or the error of the row, first bytes). `unread`: reasons for columns that were
    not read, by name; it is looked at after each row, since the reader may change it.
    """
    seen: set[str] = set()
    for position, values, first_bytes in rows:
        key, source = safe_key(f"{unit.stem}-{position}"), f"{unit.path}:{position}"
        try:
            if isinstance(values, DataError):
                raise values
            own_name = own_key(config, values)
            if own_name is not None:
                key = safe_key(own_name)
                if key in seen:
                    raise RecordError("duplicate key", f"{own_name[:LONGEST_SHOWN]!r} occurs twice")
                seen.add(key)
            yield record(config, values, key, source, image_folder(config, unit), unread)
        except DataError as error:
            loss = error.loss if isinstance(error, LostError) else Loss(1)
            yield Reject(source, key, error.kind, error.message, first_bytes[:HEAD_BYTES], loss.records, loss.at_least)


def record(
    config: InputConfig,
    values: Mapping[str, Any],
    key: str,
    source: str,
    folder: str,
    ignored: Mapping[str, str] = MappingProxyType({}),
) -> Record:
    """Return the record of an entry, with its account; raises DataError when the values do not form a record.

    `folder`: the folder that paths of images are relative to. `ignored`: reasons for values of the entry that are not
    in `values`, by their keys. Caption and text are not used when there is a conversation, unless the recipe names
    them.
    """
    try:
        return _record(config, values, key, Origin(source, folder), ignored)
    except RecursionError as error:
        raise RecordError("not JSON", "values are nested too deeply") from error


def _record(
    config: InputConfig, values: Mapping[str, Any], key: str, origin: Origin, ignored: Mapping[str, str]
) -> Record:
    account = Account(config.stream, config.format == "webdataset", "image" in config.columns, dict(ignored))
    check_editing(values, config.stream)
    names = {what: named(config, values, what) for what in NAMES}
    is_text = config.stream == "text"  # which reads no conversation and no image
    conversation = Conversation() if is_text else _conversation(values, names["turns"], origin, account)
    caption, text, marks_of_text = _texts(config, values, names, key, bool(conversation.turns), origin)
    listed = () if is_text else media.pictures(_first(values, names["image"]), origin)
    pictures = tuple(marks.arrange(conversation.marks or marks_of_text, listed))
    kinds = used_kinds(config, bool(conversation.turns), bool(text.strip()), bool(caption.strip()))
    system = _system(values, names["system"] if "system" in kinds else [], conversation)
    _account_for(config, values, names, kinds, listed, account)
    account.settle(pictures, names["image"][0] if names["image"] else "")
    known_names = {name for options in NAMES.values() for name in options} | set(config.columns.values())
    return Record(
        key=key,
        source=origin.source,
        pictures=pictures,
        turns=conversation.turns,
        context=conversation.context,
        system=system,
        caption=caption,
        text=text,
        columns={
            name: value
            for name, value in values.items()
            if value is not None and (name in config.where or (isinstance(value, SCALARS) and name not in known_names))
        },
        ignored=tuple(account.ignored.items()),
    )


def used_kinds(config: InputConfig, has_turns: bool, has_text: bool, has_caption: bool) -> set[str]:
    """Return the kinds of values (keys of `NAMES`) that the samples of an entry are made of."""
    match config.stream:
        case "text":
            return {"text"}
        case "generation":
            return {"image", "caption"}
        case "understanding" if config.layout == "plain":
            return {"image", "text" if has_text else "caption" if has_caption else "turns"}
        case "understanding":
            return {"image", "system", "turns" if has_turns else "caption"}
        case None:
            return set(NAMES)


def _account_for(
    config: InputConfig,
    values: Mapping[str, Any],
    names: Mapping[str, Sequence[str]],
    kinds: set[str],
    listed: Sequence[Picture],
    account: Account,
) -> None:
    """Note each value that is not used; raises DataError when two keys hold different images."""
    used = {names[column][0] for column in kinds if names[column]}
    reasons = _reasons(values, names, kinds, listed)
    for name, value in values.items():
        if name in used or name in config.where or name == config.columns.get("key") or not media.has_value(value):
            continue
        if name in reasons:
            account.ignore(name, reasons[name])
        else:
            account.leave(name, name, value)


def _reasons(
    values: Mapping[str, Any], names: Mapping[str, Sequence[str]], kinds: set[str], listed: Sequence[Picture]
) -> dict[str, str]:
    """Return the reason why each value of a known kind is not used, by its key; the used keys have one, too."""
    reasons: dict[str, str] = {}
    for column, keys in names.items():
        if column == "image":
            reasons |= _reasons_of_same_images(values, keys, listed) if column in kinds else {}
            continue
        for key in keys:
            reasons.setdefault(key, f"{keys[0]} is used" if column in kinds else UNUSED.get(column, NOT_USED))
    return reasons


def _reasons_of_same_images(
    values: Mapping[str, Any], keys: Sequence[str], listed: Sequence[Picture]
) -> dict[str, str]:
    """Return the reason for each key behind the first, which holds the same images; raises DataError when one does
    not."""
    for other in keys[1:]:
        if not media.stand_for(values[other], listed):
            raise RecordError(
                "two values",
                f"{keys[0]} and {other} hold different images; say which one counts: columns: {{image: {keys[0]}}}",
            )
    return {other: f"the same image as {keys[0]}" for other in keys[1:]}


def _texts(
    config: InputConfig,
    values: Mapping[str, Any],
    names: Mapping[str, Sequence[str]],
    key: str,
    has_turns: bool,
    origin: Origin,
) -> tuple[str, str, list[Mark]]:
    """Return (caption, text, marks in the text or else in the caption) of an entry."""
    caption, text = (
        _first(values, names[column]) if column in config.columns or not has_turns else None
        for column in ("caption", "text")
    )
    caption, text = words(_caption(caption, key), "the caption"), words(text, "the text")
    if config.stream != "understanding":  # the other streams keep marks as text, or refuse them
        return caption, text, []
    for content in (caption, text):
        marks.check_media(content)
    caption, marks_of_caption = marks.read(caption, origin)
    text, marks_of_text = marks.read(text, origin)
    return caption, text, marks_of_text or marks_of_caption


def named(config: InputConfig, values: Mapping[str, Any], what: str) -> list[str]:
    """Return the keys of an entry that have a value of a kind, the one that is used first."""
    column = config.columns.get(what)  # pyright: ignore[reportArgumentType] - a key or absent
    return [name for name in ((column,) if column else NAMES[what]) if name in values and media.has_value(values[name])]


def _first(values: Mapping[str, Any], names: Sequence[str]) -> Any:
    return values[names[0]] if names else None


def _conversation(values: Mapping[str, Any], names: Sequence[str], origin: Origin, account: Account) -> Conversation:
    """Return the conversation of an entry; raises DataError when two of its keys hold different ones."""
    lists = {name: as_list(values[name]) for name in names}
    filled = [name for name, messages in lists.items() if messages]
    if not filled:
        return Conversation()
    for other in filled[1:]:
        if lists[other] != lists[filled[0]]:
            raise RecordError(
                "two values",
                f"{filled[0]} and {other} are different conversations; "
                f"say which one counts: columns: {{turns: {filled[0]}}}",
            )
    return ConversationReader(filled[0], origin, account).read(lists[filled[0]])


def _system(values: Mapping[str, Any], names: Sequence[str], conversation: Conversation) -> str:
    """Return the system message of a conversation or of its entry; raises DataError when they differ."""
    texts = {words(values[name], f"{name}").strip() for name in names} | {conversation.system.strip()}
    texts.discard("")
    if len(texts) > 1:
        raise RecordError(
            "two values",
            f"the record has different system messages, {' and '.join(map(short, sorted(texts)))}; leave one out",
        )
    return conversation.system or next(iter(texts), "")


def own_key(config: InputConfig, values: Mapping[str, Any]) -> str | None:
    """Return the key in an entry; None when the recipe names no column for it.

    Raises DataError when the column holds neither a text nor a whole number.
    """
    if "key" not in config.columns:
        return None
    value = values.get(config.columns["key"])
    if not isinstance(value, str | int) or value == "":
        raise RecordError("no key", f"{config.columns['key']} is {kind(value)}")
    return str(value)


def _caption(value: Any, key: str) -> Any:
    """Return the caption of a value; of a list, as in COCO and Flickr30k, one that is drawn by the key."""
    if not isinstance(value, list):
        return value
    captions = [
        caption for caption in value if caption is not None and (not isinstance(caption, str) or caption.strip())
    ]
    return captions[int(drawn(f"caption {key}") * len(captions))] if captions else None

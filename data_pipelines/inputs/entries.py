"""From the values of an entry (columns of a table, keys of a JSON object) to a record.

The names are those of the tools that write such files: img2dataset, LLaVA, the Hugging Face hub, OpenAI's messages.
Invariant: whatever the values are, there is a record or a DataError.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

from data_pipelines.inputs.files import image_folder, inside, mean_size_of_others
from data_pipelines.inputs.keys import drawn, safe_key
from data_pipelines.record import Picture, Record, Turn, Unit
from janus_dist.config.pipeline import InputConfig
from janus_dist.data import storage
from janus_dist.data.chat import IMAGE_MARK
from janus_dist.data.inspect import Reject
from janus_dist.errors import DataError

NAMES: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "images", "jpg", "png", "image_path"),
    "caption": ("caption", "text", "TEXT", "prompt"),
    "text": ("text", "content"),
    "turns": ("conversations", "messages"),
}
"""Where a value is looked for, in this order, when `columns` does not say it."""
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
LONGEST_TEXT_BYTES = 16 * 2**20
"""Of a line or a member that is parsed: JSON takes up to twenty times as much memory."""
HEAD_BYTES = 64
"""Of a reject, for people."""
LONGEST_SHOWN = 100
"""Characters of a value in a reason."""
SCALARS = (str, int, float, bool, Decimal, date, time, timedelta)
"""Types of values that are columns for `where`; `date` includes time stamps."""


class LostError(DataError):
    """Several records cannot be read; one reject stands for them."""

    def __init__(self, message: str, loss: "Loss"):
        super().__init__(f"{message}{loss.words}")
        self.loss = loss


@dataclass(frozen=True)
class Loss:
    """How many records a damage costs."""

    records: int
    at_least: bool = False
    """Nothing says how many more."""
    words: str = ""
    """What a reason says of it."""


def lost(unread_bytes: int, read_bytes: int, records: int, usual_bytes: int) -> int:
    """About how many records are in bytes that cannot be read, one at least: as in the bytes that could be read, which
    hold `records`, or of usual size where those hold none."""
    mean_bytes = read_bytes / records if records else usual_bytes
    return max(1, round(unread_bytes / max(1, mean_bytes)))


def lost_at_end(
    of: InputConfig, endings: Sequence[str], unit: Unit, records: int, is_between_records: bool = False
) -> Loss:
    """Estimate what is lost of a file that was cut short, after `records` that could be read.

    The statistics that img2dataset writes beside a tar say it; else the mean size of the input's other files does, but
    for a file that ends between two records: it may be whole, and its writer have left out the end.
    """
    path = unit.path.removesuffix(max((one for one in endings if unit.path.endswith(one)), key=len, default=""))
    with suppress(OSError, ValueError, KeyError, TypeError):
        number = int(json.loads(storage.read(f"{path}_stats.json"))["successes"]) - records
        return Loss(max(1, number), words=f"; {path}_stats.json counts {max(0, number)} more")
    whole = None if is_between_records else mean_size_of_others(of, endings, unit.path)
    if whole is None or whole <= unit.size or not records:
        return Loss(1, True, "; how many records are lost behind that is unknown, 1 is counted")
    number = lost(round(whole) - unit.size, unit.size, records, 0)
    return Loss(number, words=f"; {number} lost by the mean size of the other files, {round(whole)} bytes")


def records(
    of: InputConfig, unit: Unit, rows: Iterable[tuple[int, Mapping[str, Any] | DataError, bytes]]
) -> Iterator[Record | Reject]:
    """Records of the rows of a table: (place in the file, values or what is wrong with them, first bytes)."""
    seen: set[str] = set()
    for place, values, head in rows:
        key, source = safe_key(f"{unit.stem}-{place}"), f"{unit.path}:{place}"
        try:
            if isinstance(values, DataError):
                raise values
            own = own_key(of, values)
            if own is not None:
                key = safe_key(own)
                if key in seen:
                    raise DataError(f"duplicate key: {own[:LONGEST_SHOWN]!r} was there before")
                seen.add(key)
            yield record(of, values, key, source, image_folder(of, unit))
        except DataError as error:
            loss = error.loss if isinstance(error, LostError) else Loss(1)
            yield Reject(source, key, error.message, head[:HEAD_BYTES], loss.records, loss.at_least)


def record(of: InputConfig, values: Mapping[str, Any], key: str, source: str, folder: str) -> Record:
    """The record of an entry; DataError when it is not made as the format says.

    `folder`: what paths of images are relative to. Caption and text are not looked at where there is a conversation,
    unless the recipe names them.
    """
    system, turns, shown = conversation(value_of(of, values, "turns"))
    found = {what: value_of(of, values, what) for what in ("caption", "text") if what in of.columns or not turns}
    taken = {name for options in NAMES.values() for name in options} | set(of.columns.values())
    return Record(
        key=key,
        source=source,
        pictures=pictures(value_of(of, values, "image"), source, folder) or pictures(shown, source, folder),
        turns=turns,
        system=system,
        caption=words(_caption(found.get("caption"), key), "the caption"),
        text=words(found.get("text"), "the text"),
        columns={
            name: value
            for name, value in values.items()
            if value is not None and (name in of.where or (isinstance(value, SCALARS) and name not in taken))
        },
    )


def own_key(of: InputConfig, values: Mapping[str, Any]) -> str | None:
    """The key that an entry says it has; None when the recipe names no column for it."""
    if "key" not in of.columns:
        return None
    value = values.get(of.columns["key"])
    if not isinstance(value, str | int) or value == "":
        raise DataError(f"no key: {of.columns['key']} is {_kind(value)}")
    return str(value)


def value_of(of: InputConfig, values: Mapping[str, Any], what: str) -> Any:
    """The value that stands for `what` in an entry; None when there is none."""
    named = of.columns.get(what)  # pyright: ignore[reportArgumentType] - one of its keys
    return first(values, *((named,) if named else NAMES[what]))


def first(values: Mapping[str, Any], *names: str) -> Any:
    """The first of some values that is there; Parquet has all, most of them null."""
    return next((values[name] for name in names if values.get(name) is not None), None)


def words(value: Any, what: str) -> str:
    """Text of a value, empty for none; DataError when it is something else."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return utf8(value, what)
    if not isinstance(value, str):
        raise DataError(f"not text: {what} is {_kind(value)}")
    return value


def _caption(value: Any, key: str) -> Any:
    """The caption of a value; of a list of them, as COCO and Flickr30k have it, one that is drawn by the key."""
    if not isinstance(value, list):
        return value
    found = [one for one in value if one is not None and (not isinstance(one, str) or one.strip())]
    return found[int(drawn(f"caption {key}") * len(found))] if found else None


def utf8(content: bytes, what: str) -> str:
    """Bytes as text; DataError when they are no UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {what} at byte {error.start}") from error


def parsed(content: bytes, what: str) -> Any:
    """The value that JSON stands for; DataError when it stands for none."""
    try:
        return json.loads(utf8(content, what))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {what}: {error}") from error


def pictures(value: Any, source: str, folder: str) -> tuple[Picture, ...]:
    """The pictures of a value: bytes, a path below `folder`, the hub's `{bytes, path}`, or a list of them."""
    found = (_picture(one, source, folder) for one in (value if isinstance(value, list) else [value]))
    return tuple(one for one in found if one is not None)


def _picture(value: Any, source: str, folder: str) -> Picture | None:
    match value:
        case None | "" | {"bytes": None, "path": None}:
            return None
        case Picture():
            return value
        case bytes() | {"bytes": bytes()}:
            return Picture(source, value if isinstance(value, bytes) else value["bytes"])
        case str() | {"path": str()}:
            return Picture(inside(folder, value if isinstance(value, str) else value["path"]), root=folder)
        case _:
            raise DataError(f"images: {_kind(value)} is neither bytes nor a path")


def conversation(value: Any) -> tuple[str, tuple[Turn, ...], list[Any]]:
    """(system message, (question, answer) turns, images named in them) of LLaVA's or OpenAI's messages."""
    if value is None:
        return "", (), []
    if isinstance(value, str):  # of a table
        value = parsed(value.encode(errors="surrogatepass"), "the conversation")
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise DataError(f"roles: a conversation is a list, not {_kind(value)}")
    shown: list[Any] = []
    said = [_message(one, shown) for one in value]
    system = said.pop(0)[1] if said and said[0][0] == "system" else ""
    roles = [role for role, _ in said]
    if roles != ["user", "assistant"] * (len(said) // 2):
        raise DataError(f"roles: {', '.join(roles[:8])}; user and assistant must take turns, the user first")
    texts = [text for _, text in said]
    return system, tuple(zip(texts[::2], texts[1::2], strict=True)), shown


def _message(value: Any, shown: list[Any]) -> tuple[str, str]:
    """(role, text) of a message; what it shows is added to `shown`."""
    if not isinstance(value, Mapping):
        raise DataError(f"roles: a message is an object, not {_kind(value)}")
    role, content = first(value, "from", "role"), first(value, "value", "content")
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(f"roles: {str(role)[:LONGEST_SHOWN]!r} is none of {', '.join(ROLES)}")
    if isinstance(content, list):
        content = "".join(_part(part, shown) for part in content)
    return ROLES[role], words(content, "a message")


def _part(value: Any, shown: list[Any]) -> str:
    match value:
        case {"type": "text", "text": str() as text}:
            return text
        case {"type": "image_url", "image_url": {"url": str() as url}}:
            shown.append(url)
            return IMAGE_MARK
        case {"type": "image" | "image_url"}:
            shown.append(first(value, "image", "path", "url"))
            return IMAGE_MARK
        case _:
            raise DataError("roles: a part of a message is neither text nor image")


def _kind(value: Any) -> str:
    if value is None or value == "":
        return "absent" if value is None else "empty"
    return type(value).__name__

"""From the values of an entry (columns of a table, keys of a JSON object) to a record.

The names are those of the tools that write such files: img2dataset, LLaVA, the Hugging Face hub, OpenAI's messages.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_pipelines.inputs.files import inside
from data_pipelines.record import Picture, Record, Turn
from janus_dist.config.pipeline import InputConfig
from janus_dist.data.chat import IMAGE_MARK
from janus_dist.errors import DataError

NAMES: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "images", "jpg", "png", "image_path"),
    "caption": ("caption", "text", "TEXT", "prompt"),
    "text": ("text", "content"),
    "turns": ("conversations", "messages"),
}
"""Where a value is looked for, in this order, when `columns` does not say it."""
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def record(of: InputConfig, values: Mapping[str, Any], key: str, source: str, folder: str) -> Record:
    """The record of an entry; DataError when it is not made as the format says.

    `folder`: what paths of images are relative to when the recipe does not say it.
    """
    taken = {name for options in NAMES.values() for name in options} | set(of.columns.values())
    system, turns = conversation(value_of(of, values, "turns"))
    return Record(
        key=key,
        source=source,
        pictures=tuple(pictures(value_of(of, values, "image"), source, of.images or folder)),
        turns=turns,
        system=system,
        caption=words(value_of(of, values, "caption"), "caption"),
        text=words(value_of(of, values, "text"), "text"),
        columns={name: value for name, value in values.items() if name not in taken or name in of.where},
    )


def value_of(of: InputConfig, values: Mapping[str, Any], what: str) -> Any:
    """The value that stands for `what` in an entry; None when there is none."""
    named = of.columns.get(what)  # pyright: ignore[reportArgumentType] - one of its keys
    for name in (named,) if named else NAMES.get(what, ()):
        if values.get(name) is not None:
            return values[name]
    return None


def words(value: Any, what: str) -> str:
    """Text of a value; DataError when it is something else."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return utf8(value, what)
    if not isinstance(value, str):
        raise DataError(f"not text: {what} is {type(value).__name__}")
    return value


def utf8(content: bytes, what: str) -> str:
    """Bytes as text; DataError when they are no UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {what} at byte {error.start}") from error


def pictures(value: Any, source: str, folder: str) -> Iterable[Picture]:
    """The pictures of a value: bytes, a path below `folder`, the hub's `{bytes, path}`, or a list of them."""
    match value:
        case None:
            return
        case Picture():
            yield value
        case bytes():
            yield Picture(source, value)
        case str():
            yield Picture(inside(folder, value))
        case {"bytes": bytes() as content}:
            yield Picture(source, content)
        case {"path": str() as path}:
            yield Picture(inside(folder, path))
        case list():
            for one in value:
                yield from pictures(one, source, folder)
        case _:
            raise DataError(f"images: {type(value).__name__} is neither bytes nor a path")


def conversation(value: Any) -> tuple[str, tuple[Turn, ...]]:
    """(system message, (question, answer) turns) of LLaVA's `conversations` or OpenAI's `messages`."""
    if value is None:
        return "", ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise DataError(f"roles: a conversation is a list, not {type(value).__name__}")
    said = [_message(one) for one in value]
    system = said.pop(0)[1] if said and said[0][0] == "system" else ""
    roles = [role for role, _ in said]
    if roles != ["user", "assistant"] * (len(said) // 2):
        raise DataError(f"roles: {', '.join(roles[:8])}; user and assistant must take turns, the user first")
    texts = [text for _, text in said]
    return system, tuple(zip(texts[::2], texts[1::2], strict=True))


def _message(value: Any) -> tuple[str, str]:
    if not isinstance(value, Mapping):
        raise DataError(f"roles: a message is an object, not {type(value).__name__}")
    role = value.get("from", value.get("role"))
    content = value.get("value", value.get("content"))
    if role not in ROLES:
        raise DataError(f"roles: {role!r} is none of {', '.join(ROLES)}")
    if isinstance(content, list):
        content = "".join(map(_part, content))
    return ROLES[role], words(content, "a message")


def _part(value: Any) -> str:
    match value:
        case {"type": "text", "text": str() as text}:
            return text
        case {"type": "image" | "image_url"}:
            return IMAGE_MARK
        case _:
            raise DataError("roles: a part of a message is neither text nor image")

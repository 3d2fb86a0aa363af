"""Conversations as LLaVA, OpenAI, Anthropic and DeepSeek write them: turns, images and which answers are learned.

Invariant: every value of a message is used, noted in the account of the entry, or refused by a DataError.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.inputs import marks, media
from data_pipelines.inputs.account import Account
from data_pipelines.inputs.marks import Mark
from data_pipelines.inputs.media import Origin
from data_pipelines.inputs.values import LONGEST_SHOWN, kind, parsed, words
from data_pipelines.record import Turn
from janus_dist.data.chat import IMAGE_MARK
from janus_dist.errors import RecordError

ROLES: Mapping[str, str] = {
    **{"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"},
    **dict.fromkeys(("bot", "model", "chatgpt", "ai", "bard", "claude", "chatbot"), "assistant"),
    **{"prompter": "user", "developer": "system"},
}
"""Our role for each role in lower case, without the `<|` and `|>` that DeepSeek's have."""
TOOLS = ("tool", "function", "function_call", "function_response", "tool_call", "tool_response", "observation")
TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")
NO_TOOLS = "calls of tools are not read: leave such records out, or write the results into the questions"
LOSS = ("loss", "weight", "train", "loss_weight", "loss_scale")
"""Keys of a message that say whether its text is learned."""
IMAGES = ("image", "images", "jpg", "png", "image_path")
TEXT_PARTS = ("text", "input_text", "output_text")
IMAGE_PARTS = ("image", "image_url", "input_image", "image_file")
IMAGE_PART_KEYS = (*media.FILE_KEYS, "bytes", "file_id")
MESSAGE_KEYS = {"from", "role", "value", "content", *TOOL_KEYS, *LOSS, *IMAGES}
PART_KEYS = {"type", "index", "media_type", "mime_type", *IMAGE_PART_KEYS}


@dataclass(frozen=True)
class Conversation:
    """The content of an entry's messages."""

    system: str = ""
    turns: tuple[Turn, ...] = ()
    """(question, answer) pairs, with `<image>` for each mark."""
    context: tuple[int, ...] = ()
    """Indices of the turns whose answers are not learned."""
    marks: tuple[Mark, ...] = ()
    """Marks of images in the questions, in their order."""


@dataclass(frozen=True)
class _Message:
    role: str
    text: str
    marks: tuple[Mark, ...]
    is_learned: bool


def as_list(value: Any) -> Sequence[Any]:
    """Return the messages of a value, which may be JSON in a column of texts.

    Raises DataError when it is not a list.
    """
    if isinstance(value, str):
        value = parsed(value.encode(errors="surrogatepass"), "the conversation")
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RecordError("roles", f"a conversation is a list, not {kind(value)}")
    return value


@dataclass(frozen=True)
class ConversationReader:
    """Reads the messages of an entry."""

    name: str
    """Key of the conversation in the entry."""
    origin: Origin
    account: Account

    def read(self, value: Any) -> Conversation:
        """Return the conversation of LLaVA's or OpenAI's messages; raises DataError when they have another form."""
        messages = [self._message(message) for message in as_list(value)]
        system = messages.pop(0) if messages and messages[0].role == "system" else None
        roles = [message.role for message in messages]
        if roles != ["user", "assistant"] * (len(messages) // 2):
            raise RecordError("roles", f"{', '.join(roles[:8])}; user and assistant must take turns, the user first")
        questions, answers = messages[::2], messages[1::2]
        for question in questions:
            marks.check_media(question.text)
        return Conversation(
            system.text if system else "",
            tuple((question.text, answer.text) for question, answer in zip(questions, answers, strict=True)),
            tuple(index for index, answer in enumerate(answers) if not answer.is_learned),
            tuple(mark for question in questions for mark in question.marks),
        )

    def _message(self, value: Any) -> _Message:
        """Return a message of LLaVA's or OpenAI's form; raises DataError when it has another form."""
        if not isinstance(value, Mapping):
            raise RecordError("roles", f"a message is an object, not {kind(value)}")
        role = _role(agreed(value, ("from", "role"), "a message"))
        content = agreed(value, ("value", "content"), "a message")
        tools = [key for key in TOOL_KEYS if media.has_value(value.get(key))]
        if tools:
            raise RecordError("roles", f"a message has {tools[0]}; {NO_TOOLS}")
        pieces = self._pieces(content)
        text = "".join(piece for piece, _ in pieces)
        message_marks = [mark for _, part_marks in pieces for mark in part_marks]
        text, message_marks = self._with_images(value, text, message_marks)
        _check_images_of_role(role, message_marks)
        self._leave(value, MESSAGE_KEYS, f"{self.name}[]")
        return _Message(role, text, tuple(message_marks), _is_learned(value, role))

    def _pieces(self, content: Any) -> list[tuple[str, list[Mark]]]:
        """Return (text, marks) of the content of a message, for each of its parts when it is a list of parts."""
        if isinstance(content, list):
            return [self._part(part) for part in content]
        return [marks.read(words(content, "a message"), self.origin)]

    def _with_images(self, message: Mapping[str, Any], text: str, shown: list[Mark]) -> tuple[str, list[Mark]]:
        """Return text and marks of a message, with the images that it lists next to its text, as DeepSeek's does.

        Raises DataError when its lists differ, or do not match the marks.
        """
        lists = {key: media.pictures(message[key], self.origin) for key in IMAGES if key in message}
        first, *others = [key for key, pictures in lists.items() if pictures] or [""]
        if not first:
            return text, shown
        if any(not media.same(lists[first], lists[other]) for other in others):
            raise RecordError("images", f"a message lists different images as {first} and {', '.join(others)}")
        listed = lists[first]
        if not shown:
            return f"{IMAGE_MARK}\n" * len(listed) + text, [Mark(first, picture=picture) for picture in listed]
        if len(shown) != len(listed):
            raise RecordError("images", f"{len(shown)} marks in a message that lists {len(listed)} images")
        arranged = marks.arrange(shown, listed)
        return text, [Mark(mark.text, picture=picture) for mark, picture in zip(shown, arranged, strict=True)]

    def _part(self, part: Any) -> tuple[str, list[Mark]]:
        """Return (text, marks) of a part of a message."""
        if not isinstance(part, Mapping):
            raise RecordError("roles", f"a part of a message is neither text nor image but {kind(part)}")
        _check_part_media(part)
        part_type = part.get("type")
        has_image = any(media.has_value(part.get(key)) for key in IMAGE_PART_KEYS)
        if part_type in IMAGE_PARTS or (part_type is None and has_image and not part.get("text")):
            return IMAGE_MARK, [self._image_mark(part, has_image)]
        if part_type in TEXT_PARTS or (part_type is None and "text" in part):
            self._leave(part, {"type", "index", "text"}, f"{self.name}[][]")
            return marks.read(words(part.get("text"), "a part of a message"), self.origin)
        raise RecordError("roles", f"a part of a message is neither text nor image: {str(part_type)[:LONGEST_SHOWN]!r}")

    def _image_mark(self, part: Mapping[str, Any], has_image: bool) -> Mark:
        """Return the mark of a part that shows an image, by its index or by the image that it holds."""
        index = part.get("index")
        number = index if isinstance(index, int) and not isinstance(index, bool) else None
        picture = media.picture(part, self.origin) if has_image else None
        self._leave(part, PART_KEYS, f"{self.name}[][]")
        return Mark(f"of type {part.get('type') or 'image'}", number, picture)

    def _leave(self, values: Mapping[str, Any], known: set[str], path: str) -> None:
        """Note the values that have no meaning in a message or part as unread."""
        for key, value in values.items():
            if key not in known:
                self.account.leave(f"{path}.{key}", key, value)


def agreed(values: Mapping[str, Any], names: Sequence[str], what: str) -> Any:
    """Return the value that synonymous names have; raises DataError when they have different values."""
    present = [name for name in names if name in values and media.has_value(values[name])]
    if any(values[name] != values[present[0]] for name in present[1:]):
        raise RecordError("two values", f"{what} has {' and '.join(present)}, and they differ; leave one out")
    return (
        values[present[0]] if present else next((values[name] for name in names if values.get(name) is not None), None)
    )


def _check_part_media(part: Mapping[str, Any]) -> None:
    """Raise DataError when a part of a message is a video or a sound."""
    part_type = part.get("type")
    for key in (part_type, *part):
        if not isinstance(key, str):
            continue
        medium = media.KEYS.get(key)
        if medium and (key == part_type or media.has_value(part.get(key))):
            raise media.refused(medium, f"a part of a message is {key}")


def _check_images_of_role(role: str, message_marks: Sequence[Mark]) -> None:
    """Raise DataError when a message that is not a question shows an image."""
    if role != "user" and any(mark.picture is not None for mark in message_marks):
        raise RecordError("images", f"a message of the {role} shows an image; only questions do")
    if role == "system" and message_marks:
        raise RecordError(
            "images", f"the mark {message_marks[0].text} is in the system message; only questions show images"
        )


def _role(value: Any) -> str:
    """Return `user`, `assistant` or `system`; raises DataError for other roles."""
    name = value.strip().strip("<|>\uff5c: ").lower() if isinstance(value, str) else ""
    if name not in ROLES:
        hint = f"; {NO_TOOLS}" if name in TOOLS else ""
        raise RecordError("roles", f"{str(value)[:LONGEST_SHOWN]!r} is not one of {', '.join(ROLES)}{hint}")
    return ROLES[name]


def _is_learned(message: Mapping[str, Any], role: str) -> bool:
    """Return whether an answer is learned, which is so unless the message says otherwise."""
    flags = {key: message[key] for key in LOSS if message.get(key) is not None}
    if not flags:
        return True
    for key, value in flags.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise RecordError(
                "loss",
                f"{key} is {str(value)[:LONGEST_SHOWN]} in a message; "
                "an answer is learned or not: 1 or 0, true or false",
            )
    if len({bool(value) for value in flags.values()}) > 1:
        raise RecordError("loss", f"{' and '.join(flags)} of a message contradict each other")
    if role != "assistant" and any(flags.values()):
        raise RecordError("loss", f"{next(iter(flags))} asks that a message of the {role} is learned; only answers are")
    return all(flags.values())

"""Settings that are paths: variables and `~` are expanded and URL schemes checked here, and nowhere else.

Invariant: what a recipe holds is a plain path or an `s3://` URL, so that every part of the program means the same place
by it. JSON of a recipe has each `$` of a path doubled, so that it can be read again.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast
from urllib.parse import unquote

from pydantic import AfterValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from janus_dist.errors import ConfigError

VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|(?P<name>[A-Za-z_]\w*)|\{(?P<braced>[^}]*)\}?)")
SCHEME = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*(?:::[\w+.:-]*)?):(?P<slashes>/+)")
"""What a URL begins with, and a URL that lacks a slash."""
STORE = "s3"
"""The scheme of the only kind of store that is supported."""
MAX_NAME_BYTES = 200
"""Bytes of the longest name that every file system takes, with room for what is added to it."""


@dataclass(frozen=True)
class PathRule:
    """The rule of a setting that is a path; an annotation of `str`, or of a type that holds such texts."""

    is_store_allowed: bool
    """Whether an `s3://` URL will do."""
    instead: str = ""
    """What to do instead of giving an `s3://` URL."""

    @property
    def kind(self) -> str:
        """The type in words."""
        return "path or `s3://` URL" if self.is_store_allowed else "path"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        escape = core_schema.plain_serializer_function_ser_schema(_escaped, when_used="json")
        return core_schema.no_info_after_validator_function(
            lambda value: each_text(value, self.checked), handler(source), serialization=escape
        )

    def checked(self, text: str) -> str:
        """Return the path with everything expanded; ValueError says what is wrong with it."""
        return self.checked_scheme(expanded(text))

    def checked_scheme(self, path: str) -> str:
        """Return the path, that of a file URL alone; ValueError for a URL that is not supported."""
        found = SCHEME.match(path)
        if found is None:
            return path
        scheme = found["scheme"]
        if scheme.lower() == "file":
            return _local(path)
        if scheme != STORE or found["slashes"] != "//":
            raise ValueError(f"{path!r} is a URL of a kind that is not supported; {_known(scheme, self)}")
        if path == f"{STORE}://":
            raise ValueError(f"{path!r} names no bucket; write s3://BUCKET/FOLDER")
        if not self.is_store_allowed:
            raise ValueError(f"must be on a disk, got {path!r}; {self.instead or 'give a path'}")
        return path


LocalPath = Annotated[str, PathRule(is_store_allowed=False)]
PathOrUrl = Annotated[str, PathRule(is_store_allowed=True)]


def expanded(text: str) -> str:
    """Return a path with the environment's values for `$VAR` and `${VAR}`, `$` for `$$`, and a home folder for `~`.

    Raises ValueError for a variable or a user that does not exist, and for a path that is empty.
    """
    path = VARIABLE.sub(_variable, text)
    if path.startswith("~"):
        user = path.partition("/")[0]
        path = os.path.expanduser(path)  # noqa: PTH111 - Path("s3://...") would lose a slash
        if path.startswith("~"):
            raise ValueError(f"{text!r}: there is no home folder of {user}; for a folder of that name write ./{user}")
    if not path.strip() or "\0" in path:
        raise ValueError(f"{text!r} is not a path{' once its variables are expanded' if path != text else ''}")
    return path


def path_or_url(argument: str) -> str:
    """Return a path or URL of a command line, where the shell has expanded what is to be expanded.

    Raises ConfigError, in the words of a recipe, for a URL of a kind that is not supported.
    """
    try:
        return PathRule(is_store_allowed=True).checked_scheme(argument)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def each_text(value: Any, change: Callable[[str], str]) -> Any:
    """Return the value with `change` of each text in it: the value itself, or those of a tuple or a mapping."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: each_text(inner, change) for name, inner in cast(Mapping[str, Any], value).items()}
    if isinstance(value, tuple):
        return tuple(each_text(inner, change) for inner in cast(tuple[Any, ...], value))
    return value


def is_url(path: str) -> bool:
    """Whether a setting that is a path is of a store."""
    return path.startswith(f"{STORE}://")


def plain_name(name: str) -> str:
    """Return a name that a folder gets; ValueError when it would lead elsewhere or no folder can have it."""
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        raise ValueError(f"must be a plain name, without '/', since a folder is called so; got {name!r}")
    if len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise ValueError(f"must have at most {MAX_NAME_BYTES} bytes, since a folder is called so; got {len(name)}")
    return name


PlainName = Annotated[str, AfterValidator(plain_name)]


def _variable(found: re.Match[str]) -> str:
    if found["escaped"]:
        return "$"
    name = found["name"] or found["braced"]
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or (found["braced"] is not None and not found[0].endswith("}")):
        raise ValueError(f"{found[0]!r} is not a variable; write $NAME or ${{NAME}}, or $$ for the sign itself")
    if name not in os.environ:
        raise ValueError(f"the environment has no variable {name}; set it, or write $$ for the sign itself")
    return os.environ[name]


def _escaped(value: Any) -> Any:
    return each_text(value, lambda text: text.replace("$", "$$"))


def _known(scheme: str, rule: PathRule) -> str:
    if not rule.is_store_allowed:
        return f"give a path{'; ' + rule.instead if rule.instead else ''}"
    if scheme.lower() in ("s3", "s3a", "s3n"):
        return "write s3:// in small letters, with two slashes"
    return "there are paths, s3:// and file://; a store that also answers S3 requests is reached by AWS_ENDPOINT_URL"


def _local(url: str) -> str:
    """Return the path of a file URL."""
    path = unquote(url.partition(":")[2])
    if path.startswith("//"):
        host, slash, rest = path[2:].partition("/")
        if host not in ("", "localhost") or not slash:
            raise ValueError(f"{url!r} is not a file of this machine; write file:///FOLDER, or the path alone")
        path = slash + rest
    return str(Path(path))

"""Settings that are paths: only this module expands variables and `~` and checks URL schemes.

Invariant: a recipe holds plain paths and `s3://` URLs only, so that every part of the program reads them the same way.
The JSON of a recipe doubles each `$` of a path, so that it can be read again.
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
"""Beginning of a URL, also of one that lacks a slash."""
PASSWORD = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*(?=@)")
"""User name and password in a URL, which no message repeats."""
STORE = "s3"
"""URL scheme of the only kind of object store that is supported."""
MAX_NAME_BYTES = 200
"""Bytes of the longest name that every file system accepts, with room for suffixes."""


@dataclass(frozen=True)
class PathRule:
    """Rule of a setting that is a path; annotates `str` or a type that holds strings."""

    is_store_allowed: bool
    """True if an `s3://` URL is allowed."""
    instead: str = ""
    """Advice for a user who gave an `s3://` URL where none is allowed."""

    @property
    def kind(self) -> str:
        """Return the type in words, for docs/settings.md."""
        return "path or `s3://` URL" if self.is_store_allowed else "path"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        escape = core_schema.plain_serializer_function_ser_schema(_escaped, when_used="json")
        return core_schema.no_info_after_validator_function(
            lambda value: each_text(value, self.checked), handler(source), serialization=escape
        )

    def checked(self, text: str) -> str:
        """Return the path with variables and `~` expanded. Raises ValueError for an invalid path or URL."""
        return self.checked_scheme(expanded(text))

    def checked_scheme(self, path: str) -> str:
        """Return the path, without the scheme of a file URL. Raises ValueError for a URL that is not supported."""
        match = SCHEME.match(path)
        if match is None:
            return path
        scheme = match["scheme"]
        if scheme.lower() == "file":
            return _local(path)
        if scheme != STORE or match["slashes"] != "//":
            shown = PASSWORD.sub("***", path)
            raise ValueError(f"{shown!r} is a URL of a kind that is not supported; {_supported(scheme, self)}")
        if path == f"{STORE}://":
            raise ValueError(f"{path!r} has no bucket; write s3://BUCKET/FOLDER")
        if not self.is_store_allowed:
            raise ValueError(f"must be on a disk, got {path!r}; {self.instead or 'give a path'}")
        return path


LocalPath = Annotated[str, PathRule(is_store_allowed=False)]
PathOrUrl = Annotated[str, PathRule(is_store_allowed=True)]


def expanded(text: str) -> str:
    """Return a path in which `$VAR` and `${VAR}` are replaced from the environment, `$$` by `$`, and `~` by a home
    folder.

    Raises ValueError for a variable or a user that does not exist, and for an empty path.
    """
    path = VARIABLE.sub(_variable, text)
    if path.startswith("~"):
        user = path.partition("/")[0]
        path = os.path.expanduser(path)  # noqa: PTH111 - Path("s3://...") would lose a slash
        if path.startswith("~"):
            raise ValueError(f"{text!r}: {user} has no home folder; for a folder of that name write ./{user}")
    if not path.strip() or "\0" in path:
        raise ValueError(f"{text!r} is not a path{' after its variables are expanded' if path != text else ''}")
    return path


def path_or_url(argument: str) -> str:
    """Return a path or URL of a command line, in which the shell has already expanded variables and `~`.

    Raises ConfigError, with the same message as for a recipe, for a URL of a kind that is not supported.
    """
    try:
        return PathRule(is_store_allowed=True).checked_scheme(argument)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def each_text(value: Any, change: Callable[[str], str]) -> Any:
    """Return the value with `change` applied to each string: the value itself, or items of tuples and mappings."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: each_text(inner, change) for name, inner in cast(Mapping[str, Any], value).items()}
    if isinstance(value, tuple):
        return tuple(each_text(inner, change) for inner in cast(tuple[Any, ...], value))
    return value


def is_url(path: str) -> bool:
    """Return whether a path is a URL of an object store."""
    return path.startswith(f"{STORE}://")


def plain_name(name: str) -> str:
    """Return the name if it can be the name of a folder. Raises ValueError if it leads elsewhere or is not valid."""
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        raise ValueError(f"must be a plain name without '/', because a folder gets this name; got {name!r}")
    if len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise ValueError(
            f"must have at most {MAX_NAME_BYTES} bytes, because a folder gets this name; got {len(name)} characters"
        )
    return name


PlainName = Annotated[str, AfterValidator(plain_name)]


def _variable(match: re.Match[str]) -> str:
    if match["escaped"]:
        return "$"
    name = match["name"] or match["braced"]
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or (match["braced"] is not None and not match[0].endswith("}")):
        raise ValueError(f"{match[0]!r} is not a variable; write $NAME or ${{NAME}}, or $$ for a literal $")
    if name not in os.environ:
        raise ValueError(f"the environment variable {name} is not set; set it, or write $$ for a literal $")
    return os.environ[name]


def _escaped(value: Any) -> Any:
    return each_text(value, lambda text: text.replace("$", "$$"))


def _supported(scheme: str, rule: PathRule) -> str:
    if not rule.is_store_allowed:
        return f"give a path{'; ' + rule.instead if rule.instead else ''}"
    if scheme.lower() in ("s3", "s3a", "s3n"):
        return "write s3:// in lower case, with two slashes"
    return "use a path, s3:// or file://; for another store with an S3 interface use s3:// and set AWS_ENDPOINT_URL"


def _local(url: str) -> str:
    """Return the path of a file URL."""
    path = unquote(url.partition(":")[2])
    if path.startswith("//"):
        host, slash, rest = path[2:].partition("/")
        if host not in ("", "localhost") or not slash:
            raise ValueError(f"{url!r} is not a file of this machine; write file:///FOLDER, or the path alone")
        path = slash + rest
    return str(Path(path))

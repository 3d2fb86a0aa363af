"""Every setting of a recipe as docs/settings.md has it: name, type, default, meaning.

    janus config docs > docs/settings.md

Invariant: the page is made of the typed recipe; a test compares them.
"""

import typing
from collections.abc import Iterator, Sequence
from datetime import datetime
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, cast, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from janus_dist.config.paths import PathRule
from janus_dist.config.recipe import StageRecipe

HEAD = """# Settings

Every setting of a stage's recipe; pipelines, sampling and evaluation read the sections that they need of the same
files. Made by `janus config docs`. A recipe is one or more YAML files, later ones over earlier ones, and
`key.path=value` on the command line over all; an unknown key is an error that names the nearest right one. For editors:
`janus config schema > recipe.schema.json`, and `# yaml-language-server: $schema=recipe.schema.json` in the first line
of a recipe.

Sections of several files are merged, lists are replaced whole. `null` removes: an entry of a mapping by name
(`pipeline.inputs.text: null`), all of them (`pipeline.inputs: null`), or what a file before says of a setting, which
has its default again; where the type below has `null`, that is the value. `!replace` before a section drops what files
before say of it (`inputs: !replace {text: ...}`). Both work on the command line: `pipeline.inputs.text=null`.

In paths `~`, `$NAME` and `${NAME}` are expanded where the job runs (`$$` is the sign itself); a variable that is not
set is an error. Stores are named by `s3://BUCKET/FOLDER`.

Recipes are YAML 1.2: `2:3:5` and `no` are text, `010` is ten, `0o10` is eight; digits may be grouped (`5_000_000`).
"""


def as_markdown() -> str:
    """The whole page."""
    return "\n".join([HEAD.rstrip(), *_section("", StageRecipe)]) + "\n"


def _section(path: str, kind: type[BaseModel]) -> Iterator[str]:
    """A heading, the section's own settings, then the sections within it."""
    inner = {name: _model(field.annotation) for name, field in kind.model_fields.items()}
    plain = [name for name, model in inner.items() if model is None]
    if path:
        yield ""
        yield f"## {path}"
        yield ""
        yield " ".join((kind.__doc__ or "").split())
    if plain:
        yield ""
        yield "| setting | type | default | meaning |"
        yield "| --- | --- | --- | --- |"
        for name in plain:
            field = kind.model_fields[name]
            meaning = " ".join((field.description or "").split()).replace("|", "\\|")
            yield f"| `{path + '.' if path else ''}{name}` | {_type(field)} | {_default(field)} | {meaning} |"
    for name, field in kind.model_fields.items():
        below = f"{path}.{name}" if path else name
        if (model := inner[name]) is not None:
            yield from _section(below, model)
        for one in get_args(field.annotation):
            if _model(one) is not None:
                yield from _section(below + (".NAME" if get_origin(field.annotation) is dict else "[]"), one)


def _model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    words: dict[Any, str] = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        text = words[value]
    elif isinstance(value, tuple):
        text = "[" + ", ".join(map(str, cast(tuple[Any, ...], value))) + "]"
    else:
        text = f"{value:_}" if isinstance(value, int) else str(value)
    return f"`{text}`" if text else "empty"


def _type(field: FieldInfo) -> str:
    bounds = [_bound(rule) for rule in field.metadata]
    return ", ".join([_name(field.annotation, field.metadata), *filter(None, bounds)]).replace("|", "\\|")


def _bound(rule: Any) -> str:
    match rule:
        case Gt(gt=value):
            return f"above {value:g}"
        case Ge(ge=value):
            return f"{value:g} or more"
        case Lt(lt=value):
            return f"below {value:g}"
        case Le(le=value):
            return f"{value:g} at most"
        case _:
            return ""


def _name(kind: Any, rules: Sequence[Any] = ()) -> str:
    """Return a type in a reader's words; `rules` are those of its annotation."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        bounds = [_bound(rule) for rule in inner[1:]]
        return ", ".join([_name(inner[0], inner[1:]), *filter(None, bounds)])
    if text := next((rule.kind for rule in rules if isinstance(rule, PathRule)), None):
        return text if kind is str else f"{text}, or list of them"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (typing.Union, UnionType):
        return " or ".join("null" if one is NoneType else _name(one) for one in inner)
    if origin is tuple:
        return "list of " + _name(inner[0])
    if origin is dict:
        return f"map of {_name(inner[0])} to {_name(inner[1])}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "section"
    words: dict[Any, str] = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        datetime: "date",
    }
    return words[kind]

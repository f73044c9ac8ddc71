"""How options look in `--help`: what the fields of a dataclass say of themselves, in whole lines."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

_METAVARS: dict[object, str] = {str: "STR", int: "INT", float: "FLOAT", Path: "PATH"}


def registry() -> ConstructorRegistry:
    """Within which (`with registry():`) `tyro.cli` makes options from dataclasses.

    Tyro itself breaks a description where its source does, shows None as a default beside a description that says what
    happens then, and puts it among the values to give.
    """
    made = ConstructorRegistry()
    made.struct_rule(_options)
    return made


def whole_lines(text: str) -> str:
    """A docstring with each paragraph in one line; items of lists ("- ") and indented lines keep their own."""
    return re.sub(r"(?<!\n)\n(?![\n ]|- )", " ", inspect.cleandoc(text))


def descriptions(kind: type) -> dict[str, str]:
    """The docstrings below a dataclass's fields, those that it inherits too."""
    found = {}
    for owner in reversed(kind.__mro__):
        if dataclasses.is_dataclass(owner):
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
            assert isinstance(body, ast.ClassDef)
            for field, text in zip(body.body, body.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    found[ast.unparse(field.target)] = whole_lines(ast.literal_eval(text.value))
    return found


def _options(info: StructTypeInfo) -> StructConstructorSpec | None:
    kind = info.type
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)) or getattr(kind, "__parameters__", None):
        return None  # to tyro's own rules, which know what a parameter stands for; tyro uses such a dataclass itself
    hints, said = get_type_hints(kind, include_extras=True), descriptions(kind)
    fields = []
    for field in dataclasses.fields(kind):
        default = _default(field, info.default if isinstance(info.default, kind) else None)
        fields.append(StructFieldSpec(field.name, _shown(hints[field.name], default), default, said.get(field.name)))
    return StructConstructorSpec(kind, tuple(fields))


def _default(field: dataclasses.Field[Any], of: Any) -> Any:
    """A field's value in an instance; without one, its default."""
    if of is not None:
        return getattr(of, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING if field.default is dataclasses.MISSING else field.default


def _shown(hint: Any, default: Any) -> Any:
    """A field's type, with how its option is shown; what the field says itself about that comes behind, and counts."""
    bare, *own = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if dataclasses.is_dataclass(bare):
        return hint
    kinds = get_args(bare)
    metavar = _METAVARS.get(kinds[0]) if kinds[1:] == (type(None),) else None
    shown = tyro.conf.arg(metavar=metavar, help_behavior_hint="" if default is None or default == () else None)
    return Annotated[(bare, shown) + tuple(own)]

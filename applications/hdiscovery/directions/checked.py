"""Types and ranges of a dataclass's fields, checked by pydantic when an object is made."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

# The types that fields are declared with; a bound is part of the type.
Count = Annotated[int, Field(ge=1)]
CountFromZero = Annotated[int, Field(ge=0)]
CountFromTwo = Annotated[int, Field(ge=2)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
KINDS = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "finite_number": "must be finite",
    "is_instance_of": "must be a {class}",
    "greater_than": "must be positive and finite",
    "greater_than_equal": "must be at least {ge:g}",
}


def check(settings: Any, table: str) -> None:
    """Check every field of a frozen dataclass against its declared type and bounds.

    A whole number that stands for a float becomes a float. Nothing else is converted: 8.0 is not a
    whole number, and "no" is not a truth value.

    Args:
        settings: The object, from its own ``__post_init__``.
        table: How a recipe calls the group of these fields.

    Raises:
        ValueError: If a value has the wrong type or is out of range.
    """
    for name, adapter in _adapters(type(settings)).items():
        value = getattr(settings, name)
        try:
            object.__setattr__(settings, name, adapter.validate_python(value))
        except ValidationError as error:
            raise ValueError(_sentence(error, type(settings), name, table)) from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the closest known word as a question, or nothing if no known word is close.

    Example:
        >>> did_you_mean("lamda_G", ["lambda_G", "lambda_1"])
        ' Did you mean `lambda_G`?'
    """
    lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), lower, n=1)
    return f" Did you mean `{lower[found[0]]}`?" if found else ""


@lru_cache
def _adapters(kind: type) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(kind, include_extras=True)
    # A field that is a dataclass itself checks its own fields.
    checked = {name: hint for name, hint in hints.items() if not is_dataclass(hint)}
    return {name: TypeAdapter(hint, config=STRICT) for name, hint in checked.items()}


def _sentence(error: ValidationError, kind: type, name: str, table: str) -> str:
    problem = error.errors(include_url=False)[0]
    value, suggestion = problem["input"], ""
    if problem["type"] == "literal_error":
        choices = [str(choice) for choice in get_args(get_type_hints(kind)[name])]
        must = f"must be one of {', '.join(choices)}"
        suggestion = did_you_mean(str(value), choices)
    else:
        form = KINDS.get(problem["type"], f"is refused ({problem['msg']})")
        must = form.format(**problem.get("ctx", {}))
    return f"`{name}` {must}, got {value!r} (field `{table}.{name}`).{suggestion}"

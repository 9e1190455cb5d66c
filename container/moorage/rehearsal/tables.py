"""The types of moorage.toml's tables. Imports pydantic: load it when needed.

Types are strict, as TOML has them: "2" is not 2. A duration is a number of seconds or a text such as "30s" or "2h".
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from moorage.errors import ConfigError
from moorage.rehearsal import spelling


def read_by(reader: Callable[[str], Any], *kinds: type) -> BeforeValidator:
    """A text is read as flags are, and so is what is of `kinds`; anything else is left to the type."""

    def read(value: Any) -> Any:
        if type(value) not in (str, *kinds):
            return value
        try:
            return reader(value)
        except ConfigError as error:
            raise ValueError(f"{error.what}\n{error.fix}") from None

    return BeforeValidator(read)


def checked_by(reader: Callable[[str], Any]) -> BeforeValidator:
    """A text that `reader` takes, and that stays as it is."""

    def check(value: Any) -> Any:
        read_by(reader).func(value)  # type: ignore[call-arg]  # takes one value, as `read` above
        return value

    return BeforeValidator(check)


def plain(value: Any) -> Any:
    """What JSON can hold: TOML's dates are not hyperparameters, and neither are inf and nan."""
    if isinstance(value, datetime.date | datetime.time) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"is {value}, which is no hyperparameter\nput it in quotes")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        plain(item)
    return value


def as_text(value: Any) -> Any:
    """Environment variables are texts; a number or a bool means what it looks like."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


Duration = Annotated[float, read_by(spelling.duration)]
Value = Annotated[Any, BeforeValidator(plain)]


class Table(BaseModel):
    """Unknown keys are errors, and nothing is taken for another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

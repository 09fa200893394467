"""What a rule tells a script, as one JSON that models parse."""

from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from mergetime.core.errors import UserError

T = TypeVar("T")


def parsed(kind: type[T], option: str, text: str) -> T:
    """The JSON after ``option`` as a ``kind``: a pydantic model, or a list or mapping of such.

    Raises:
        UserError: in one line that names the option and the first three keys that are wrong.
    """
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        lines = (
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}".removeprefix(": ")
            for item in error.errors()[:3]
        )
        raise UserError(f"{option}: {'; '.join(lines)}") from error

"""The settings of each kind of statistic that is measured of an expert.

Configs are checked by them: nothing heavy is imported here.
"""

from typing import Any

from mergetime.merging.method import Parameter

SETTINGS: dict[str, tuple[Parameter, ...]] = {
    "fisher": (
        Parameter("draws", 1, "labels drawn for every answer token", 1),
        Parameter("normalise", "model", "over what its root mean square is made 1", choices=("model", "none")),
    ),
    "gram": (),
    "mask": (
        Parameter("density", 0.05, "share of the entries that is kept, over the model", 0.0, 1.0, low_is_open=True),
        Parameter("steps", 10, "steps of gradient descent", 0),
        Parameter("learning_rate", 0.1, "step, with the first gradient's root mean square as unit", 0.0),
        Parameter("l1", 1.0, "nats per answer token that a mask of ones costs", 0.0),
        Parameter("bias", 5.0, "S of the entries that are in at first; the others have its negative", 0.0),
        Parameter("batch_size", 16, "chats in a step", 1),
    ),
}
"""The settings of each kind of statistic; those that count something are whole numbers with a whole default."""


def checked(setting: Parameter, value: object) -> Any:
    """The value of a setting, as an int where it counts something.

    Raises:
        ValueError: in one line that names the setting, if the value is of the wrong type or outside its domain.
    """
    number = setting.check(value)
    if not isinstance(setting.default, int):
        return number
    if number != int(number):
        raise ValueError(f"{setting.name}: {number} is not a whole number")
    return int(number)

"""Whether code that models write may run unprotected: a config, which may be somebody else's, does not decide alone."""

from collections.abc import Mapping

from mergetime.core.errors import UserError

VARIABLE = "MERGETIME_SANDBOX"
"""What whoever gives the command sets to ``none``; scripts that evaluate then tell it to the tasks."""


def check_unprotected(sandbox: str, source: str, environment: Mapping[str, str]) -> None:
    """Refuse ``sandbox: none`` where the environment does not say the same.

    Args:
        sandbox: ``evaluation.sandbox`` of a config.
        source: of the config, to begin the message.
        environment: of the command.

    Raises:
        UserError: saying what to set, and what it means.
    """
    if sandbox == "none" and environment.get(VARIABLE) != "none":
        raise UserError(
            f"{source}: evaluation.sandbox: none lets code that models write do whatever you may do; take it out, or "
            f"set {VARIABLE}=none in the environment of the command, too"
        )

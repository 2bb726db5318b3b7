"""Base class of verbs, which appends the relevant options to errors and warnings of the library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import typer
from typer.core import TyperCommand

from attunet3d.errors import AttUNet3dError


class Verb(TyperCommand):
    """A command whose errors name its options, see ``with_options``."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb.

        Raises:
            AttUNet3dError: with the verb's options in its message.
        """
        try:
            return super().invoke(ctx)
        except AttUNet3dError as error:
            raise AttUNet3dError(with_options(error, self)) from error


class Program(typer.Typer):
    """A program or a group of verbs, whose commands are ``Verb``."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Declare a command, like ``typer.Typer.command``."""
        return super().command(name, cls=Verb, **settings)


def with_options(message: object, verb: Any) -> str:
    """Append to an error or warning the options of a verb for the arguments that it names: "... (--device)".

    Args:
        message: an error, a ``Notice``, or plain text, which names no arguments.
        verb: the command that is running.

    Returns:
        The text; arguments for which the verb has no option add nothing.
    """
    options = [option for name in dict.fromkeys(_arguments(message)) if (option := _option(name, verb)) is not None]
    return f"{message} ({', '.join(options)})" if options else str(message)


def _arguments(message: object) -> Iterator[str]:
    """Yield the arguments of a message and, for an error, of its causes that it quotes."""
    seen: list[object] = []  # a cause that is raised again has the outer error as its context
    while message is not None and message not in seen:
        if not seen or str(message) in str(seen[0]):
            yield from getattr(message, "arguments", ())
        seen.append(message)
        message = getattr(message, "__cause__", None) or getattr(message, "__context__", None)


def _option(argument: str, verb: Any) -> str | None:
    """Find the option for an argument in the verb's declarations, or else among the config ids of its --set."""
    from attunet3d.config.files import CONFIG_FILES, Mode, defines

    options = [parameter for parameter in verb.params if parameter.param_type_name == "option"]
    declared = {option.name: max(option.opts, key=len) for option in options}
    if argument in declared:
        return declared[argument]
    mode: Mode = next((mode for mode in CONFIG_FILES if mode == verb.name), "inference")  # whose ids --set takes
    return f"--set {argument}=..." if "--set" in declared.values() and defines(mode, argument) else None

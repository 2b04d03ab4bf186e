"""The options of one command: typed from dataclasses by jsonargparse, with its errors in plain words."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from greedynas_fast.dataclass_io import describe, field_types, nearest
from greedynas_fast.errors import InputError

if TYPE_CHECKING:
    from jsonargparse import Namespace


class Options:
    """Collects the arguments and options of one command, then parses its words.

    Defaults are not filled in, so that what was asked for can be told from what was not: read optional values with
    `namespace.get(name)`.

    Attributes:
        parser: the parser of jsonargparse (whose interface is argparse's).
    """

    def __init__(self, command: str, summary: str) -> None:
        """An empty parser with the options that all commands have."""
        from jsonargparse import ArgumentParser

        self.parser = ArgumentParser(
            prog=f"greedynas-fast {command}",
            description=f"{summary[0].upper()}{summary[1:]}.",
            exit_on_error=False,
            allow_abbrev=False,
            print_config=None,  # its own would know nothing of presets
        )
        self.parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
        self.parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        self._cls: type | None = None
        self._fields: tuple[str, ...] = ()
        self._short: dict[str, str] = {}

    def add_fields(self, cls: type, fields: Collection[str]) -> None:
        """Add the named fields of the dataclass `cls` as options, nested ones dotted (`--train.epochs`)."""
        self._cls, self._fields = cls, tuple(fields)
        self.parser.usage = f"{self.parser.prog} [arguments and options, as below]"
        self.parser.add_class_arguments(cls, None, skip={name for name in field_types(cls) if name not in fields})
        groups = {f"--{name}" for name in _groups(cls, "")}
        for action in self.parser._actions:
            # jsonargparse also takes a file for each group; one `--config` is enough.
            if groups.intersection(action.option_strings):
                action.help = argparse.SUPPRESS

    def add_shorthand(self, short: str, option: str, metavar: str) -> None:
        """Let `short` stand for `option`, which exists already."""
        self._short[short] = option
        self.parser.epilog = f"{self.parser.epilog or ''} {short} {metavar} is short for {option} {metavar}.".lstrip()

    def parse(self, words: Sequence[str]) -> Namespace:
        """Parse the words after the command.

        Raises:
            InputError: an unknown option (the nearest known one is named), a missing or an impossible value.
        """
        replaced = [self._replace(word) for word in words]
        for word in replaced:
            self._refuse_group(word)
        try:
            return self.parser.parse_args(replaced, defaults=False)
        except argparse.ArgumentError as error:
            raise InputError(self._plain(str(error))) from None

    def _replace(self, word: str) -> str:
        option, equals, value = word.partition("=")
        return self._short.get(option, option) + equals + value

    def _refuse_group(self, word: str) -> None:
        group = word.split("=", 1)[0].removeprefix("--")
        if self._cls is None or not word.startswith("--") or group not in _groups(self._cls, ""):
            return
        example = next(iter(field_types(_groups(self._cls, "")[group])))
        raise InputError(f"--{group} is a group of options: give one of them, such as --{group}.{example}.")

    def _plain(self, message: str) -> str:
        """The message of jsonargparse as one sentence without names of Python types."""
        message = re.sub(r"\s+", " ", message).strip()
        if match := re.match(r"unrecognized arguments: (.*)", message):
            words = match[1].split(" ")
            return self._unknown(next((word for word in words if word.startswith("-")), words[0]).split("=", 1)[0])
        if match := re.match(r'Parser key "([^"]+)": (.*)Got value: (.*)$', message):
            hint = self._hint(match[1])
            plain = next((name for name in (int, float) if str(name) in match[2]), None)
            expected = "another kind of value" if hint is None and plain is None else describe(hint or plain)
            return f"--{match[1].replace('_', '-') if hint is None else match[1]} must be {expected}, got {match[3]!r}."
        if match := re.match(r"(?:the following arguments are required|argument): (.*)", message):
            options = {action.dest: action.option_strings for action in self.parser._actions}
            names = [(options.get(name) or [name])[0] for name in match[1].split(", ")]
            return f"missing: {', '.join(names)}."
        return message.rstrip(".") + "."

    def _unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"unexpected argument {word!r}."
        section = word.lstrip("-").split(".", 1)[0]
        if self._cls is not None and section in field_types(self._cls) and section not in self._fields:
            return f"{word} is no option of this command; `greedynas-fast train` and `run` take it for a new run."
        arguments = {action.dest for action in self.parser._actions if not action.option_strings}
        name = word.lstrip("-")
        if name in arguments:
            return f"{word} is no option of this command: {name} is given by itself, without its name before it."
        keys = self.parser.get_defaults().as_flat().__dict__.keys() - arguments
        near = nearest(word, [f"--{key}" for key in sorted(keys)])
        return f"unknown option {word}." + (f" The nearest known one is {near}." if near else "")

    def _hint(self, key: str) -> Any:
        """Type of the field with this dotted key; None if it is no field."""
        hint: Any = self._cls
        for name in key.split("."):
            is_tree = isinstance(hint, type) and dataclasses.is_dataclass(hint)
            hint = field_types(hint).get(name) if is_tree else None
        return hint


def given(namespace: Namespace, fields: Collection[str]) -> dict[str, object]:
    """Those of the named fields (`Options.add_fields`) that the command line gave: dotted keys and values."""
    values: dict[str, object] = dict(namespace.items())
    return {key: value for key, value in values.items() if key.split(".", 1)[0] in fields}


def _groups(cls: type, prefix: str) -> dict[str, type]:
    """Dotted names of the dataclasses in the dataclass tree `cls`."""
    groups: dict[str, type] = {}
    for name, hint in field_types(cls).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            groups |= {prefix + name: hint, **_groups(hint, f"{prefix}{name}.")}
    return groups

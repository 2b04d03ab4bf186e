"""The command lines in the code blocks of README.md and docs/ are ones that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from greedynas_fast import presets
from greedynas_fast.commands import REGISTRY, load
from greedynas_fast.commands.parsing import Options
from greedynas_fast.errors import InputError

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:^|\s)(?:greedynas-fast|-m greedynas_fast)\s")


def command_lines(text: str) -> list[list[str]]:
    """The words after `greedynas-fast` of each command in the code blocks without a language, or of bash."""
    found = []
    for language, block in _BLOCK.findall(text):
        if language not in ("", "bash"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("Next:"):  # what a command prints
                continue
            if match := _COMMAND.search(line):
                words = shlex.split(line[match.end() :], comments=True)
                found.append([word for word in words if word != "&"])
    return found


def parse(words: list[str]) -> None:
    """As `main` does it, without executing anything.

    Raises:
        InputError: an option or a value that the command does not take.
    """
    name, *rest = words
    assert name in REGISTRY
    options = Options(name, REGISTRY[name][1])
    load(name).arguments(options)
    namespace = options.parse(rest)
    assert namespace.get("preset") in (None, *presets.names())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_documents_parse(page: Path) -> None:
    commands = command_lines(page.read_text())
    assert commands, f"{page.name}: no command found"
    for words in commands:
        try:
            parse(words)
        except InputError as error:
            pytest.fail(f"{page.name}: greedynas-fast {shlex.join(words)}: {error}")


def test_what_a_document_may_not_say() -> None:
    text = "```\ntorchrun -m greedynas_fast train --trian.epochs 3 \\\n    --run-dir DIR &   # a comment\n```\n"
    (words,) = command_lines(text)
    assert words == ["train", "--trian.epochs", "3", "--run-dir", "DIR"]
    with pytest.raises(InputError, match=r"unknown option --trian\.epochs"):
        parse(words)

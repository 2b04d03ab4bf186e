"""Complete configurations as commented YAML files, and recipes for retraining; how they are found and read.

`<name>.yaml` is a preset, `recipes/<name>.yaml` the values of a retraining recipe. What the keys mean stands in
`greedynas_fast.config`, which checks them.
"""

from __future__ import annotations

import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from greedynas_fast.dataclass_io import nearest
from greedynas_fast.errors import InputError

DEFAULT = "sample"

# Floats of YAML 1.2 that PyYAML does not know: tag, pattern, first characters.
_FLOAT = (
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def names() -> tuple[str, ...]:
    """Names of the presets, the default one first."""
    return _names(resources.files(__name__), first=DEFAULT)


def recipes() -> tuple[str, ...]:
    """Names of the retraining recipes."""
    return _names(resources.files(__name__) / "recipes")


def text(name: str) -> str:
    """The YAML text of a preset, comments included.

    Raises:
        InputError: there is no such preset.
    """
    return _text(resources.files(__name__), name, names(), "preset")


def read(name: str) -> Any:
    """A preset as nested mappings, unchecked.

    Raises:
        InputError: there is no such preset.
    """
    return parse_yaml(text(name), f"preset {name}")


def read_recipe(name: str) -> Any:
    """A retraining recipe as nested mappings, unchecked.

    Raises:
        InputError: there is no such recipe.
    """
    return parse_yaml(_text(resources.files(__name__) / "recipes", name, recipes(), "recipe"), f"recipe {name}")


def read_text(file: Path, what: str) -> str:
    """The text of a file that the user named; `what` says in messages what it was meant to be.

    Raises:
        InputError: the file cannot be read, or is not text.
    """
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read the {what} {file}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"cannot read the {what} {file}: it is not UTF-8 text.") from None


def parse_yaml(text: str, origin: str) -> Any:
    """YAML text as plain values; an empty text is an empty mapping.

    Numbers such as `1e-3` and `330e6` are numbers (YAML 1.2; PyYAML alone takes them for text).

    Raises:
        InputError: the text is not YAML, or a mapping has a key twice; `origin` names it in the message.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """PyYAML's safe loader with the floats of YAML 1.2 and no repeated keys."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for index, key in enumerate(keys):
                if key in keys[:index]:
                    raise InputError(f"{origin}, line {node.start_mark.line + 1}: the key {key!r} stands there twice.")
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver(*_FLOAT)
    try:
        value = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{origin} is not YAML: {' '.join(str(error).split())}.") from None
    return {} if value is None else value


def dump_yaml(mapping: dict[str, Any]) -> str:
    """Nested mappings as YAML text, keys in their order; `parse_yaml` gives equal ones back."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """PyYAML's safe dumper, which quotes text that `parse_yaml` would take for a number."""

    Dumper.add_implicit_resolver(*_FLOAT)
    result: str = yaml.dump(mapping, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
    return result


def _names(folder: Traversable, first: str | None = None) -> tuple[str, ...]:
    found = sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return tuple(sorted(found, key=lambda name: name != first))


def _text(folder: Traversable, name: str, known: tuple[str, ...], kind: str) -> str:
    if name not in known:
        near = nearest(name, known)
        raise InputError(
            f"unknown {kind} {name!r}; known: {', '.join(known)}." + (f" Did you mean {near!r}?" if near else "")
        )
    return (folder / f"{name}.yaml").read_text(encoding="utf-8")

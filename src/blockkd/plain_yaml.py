"""YAML that a stranger may have written → plain data, in bounded time and memory.

The safe loader of PyYAML runs no code, but it follows aliases: nine lines of ten aliases each are a thousand million
values to all who walk over them later, merged mappings are written out by the loader itself, and a value nested in
itself never ends. So the text is first read into nodes, in which an alias is a reference, and counted there.
"""

from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 2**18  # a resolved recipe takes some 4 KB
MOST_VALUES = 20_000
DEEPEST = 60

_MERGE = "tag:yaml.org,2002:merge"


class PlainYAMLError(ValueError):
    """The text is no YAML, or not plain enough; the message says why, without naming the file."""


def read_yaml(path: Path) -> Any:
    """The content of a file.

    Raises:
        PlainYAMLError: it is no YAML, says a key twice, or would grow, by size, by depth or by its aliases.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise PlainYAMLError(f"it has more than {MOST_BYTES // 1024} KiB")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PlainYAMLError(f"it is not text in UTF-8: {error}") from error
    return load_yaml(text)


def load_yaml(text: str) -> Any:
    """Text → data; raises ``PlainYAMLError`` as ``read_yaml`` does."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _Count(node).check()
        return loader.construct_document(node)
    except PlainYAMLError:
        raise
    except RecursionError as error:
        raise PlainYAMLError(f"it is nested deeper than {DEEPEST} levels") from error
    except Exception as error:  # of a value that is none of its kind PyYAML lets through whatever Python says
        raise PlainYAMLError(f"it is not readable YAML: {' '.join(str(error).split())}") from error


def check_grows(text: str) -> None:
    """Raise ``PlainYAMLError`` where text that may be YAML would grow beyond measure; any other text passes."""
    try:
        node = yaml.SafeLoader(text).get_single_node()
    except RecursionError as error:
        raise PlainYAMLError(f"it is nested deeper than {DEEPEST} levels") from error
    except (yaml.YAMLError, ValueError):
        return
    if node is not None:
        _Count(node, unique_keys=False).check()


class _Count:
    """Counts what a node holds when its aliases are followed; each node is looked at once."""

    def __init__(self, root: yaml.Node, unique_keys: bool = True) -> None:
        self.root, self.unique_keys = root, unique_keys
        self._sizes: dict[int, int] = {}
        self._open: set[int] = set()

    def check(self) -> None:
        self._size(self.root, 0)

    def _size(self, node: yaml.Node, depth: int) -> int:
        if id(node) in self._open:
            raise PlainYAMLError(f"a value holds itself{_place(node)}")
        if depth > DEEPEST:
            raise PlainYAMLError(f"it is nested deeper than {DEEPEST} levels{_place(node)}")
        if id(node) not in self._sizes:
            self._open.add(id(node))
            self._sizes[id(node)] = 1 + sum(self._size(part, depth + 1) for part in self._parts(node))
            self._open.remove(id(node))
        if self._sizes[id(node)] > MOST_VALUES:
            raise PlainYAMLError(f"with its aliases written out it has more than {MOST_VALUES:,} values{_place(node)}")
        return self._sizes[id(node)]

    def _parts(self, node: yaml.Node) -> list[yaml.Node]:
        if isinstance(node, yaml.MappingNode):
            if self.unique_keys:
                self._check_keys(node)
            return [part for pair in node.value for part in pair]
        return list(node.value) if isinstance(node, yaml.SequenceNode) else []

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if (key.tag, key.value) in seen:
                    raise PlainYAMLError(f"the key {key.value!r} is there twice{_place(key)}")
                seen.add((key.tag, key.value))


def _place(node: yaml.Node) -> str:
    return f" (line {node.start_mark.line + 1})" if node.start_mark else ""

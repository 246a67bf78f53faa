"""Files in which a name comes twice are refused: whoever reads them would lose one of the two without a word."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def check_unique(names: Iterable[Any], what: str) -> None:
    """Check that no name comes twice.

    Args:
        what: what the names are, for the message.
    Raises:
        ValueError - naming the first that does.
    """
    seen = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} must be there once, got {name!r} twice")
        seen.add(name)


def unique_json(text: str) -> Any:
    """Return what a text of JSON holds.

    Raises:
        ValueError - it is no JSON, or an object in it has a key twice.
    """
    return json.loads(text, object_pairs_hook=_unique_object)


def unique_yaml(text: str) -> Any:
    """Return what a text of YAML holds.

    Raises:
        ValueError - a mapping in it has a key twice; yaml.YAMLError - it is no YAML.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # later on, keys that are merged in would be among them
            node = super().compose_mapping_node(anchor)
            check_unique((key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)), "key")
            return node

    return yaml.load(text, Loader=Loader)


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        check_unique((name for name, _ in pairs), "key")
    return found

"""Code that a configuration names by a dotted path. Nothing else is imported from the current folder, which may hold files of anybody."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec


def import_named(path: str) -> None:
    """Import the module of a function or class that an option names; if it is nowhere else, from the current folder, with what it imports.

    Raises:
        ImportError - there is none; ValueError - the path does not begin with a module.
    """
    module = path.rpartition(".")[0]
    top = module.partition(".")[0]
    if not top:
        raise ValueError("no module")
    if "" in sys.path or top in sys.modules or find_spec(top) is not None:
        import_module(module)
        return
    sys.path.append("")
    try:
        import_module(module)
    except ImportError:
        sys.path.remove("")
        raise

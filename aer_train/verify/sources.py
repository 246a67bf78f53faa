"""Which code judges: a function keeps its name when it is edited, and then the numbers before and after are of two functions."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path

from aer_train.config.tree import RewardConfig
from aer_train.verify.served import is_url
from aer_train.verify.worker import load_function


def source_digests(reward: RewardConfig) -> dict[str, str]:
    """Return, by dotted path, a digest of the file that each function of one's own is written in; servers and builtins have none.

    What such a file imports is not in it.
    """
    found = {}
    for path in (reward.kind, *reward.functions):
        if "." in path and not is_url(path):
            file = _source_of(path)
            if file is not None:
                found[path] = hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()
    return found


def _source_of(path: str) -> str | None:
    try:
        return inspect.getsourcefile(inspect.unwrap(load_function(path)))
    except TypeError:  # written in C
        return None

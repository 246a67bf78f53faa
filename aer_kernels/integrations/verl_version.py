"""Which verl the adapter was written for. **Importing this module checks the one that is installed**, before its names are looked up."""

from __future__ import annotations

import verl

from aer_kernels.integrations.guard import check_version

OLDEST, BELOW = "0.9", "0.10"
"""verl changes from one minor version to the next: others are refused by name."""

check_version("verl", verl.__version__, OLDEST, BELOW, "pip install 'verl>=0.9,<0.10'")

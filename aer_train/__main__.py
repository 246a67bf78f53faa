"""python -m aer_train: the same as aer-train."""

import sys

from aer_train.cli import main

if __name__ == "__main__":
    sys.exit(main())

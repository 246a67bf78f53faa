"""aer-train, and python -m aer_train: the command line, or one line that names what it needs."""

import sys


def main() -> int:
    """Run `aer_train.cli.main`; exit code 2 and one line without the packages of the extra `train`, which the kernels do not need."""
    try:
        from aer_train.cli import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(("aer_train", "aer_kernels")):
            raise
        print(f'error: aer-train needs: pip install "aer-rl[train]" (no module {error.name})', file=sys.stderr)
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())

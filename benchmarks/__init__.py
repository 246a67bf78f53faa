"""Speed and memory of the fused functions beside what a user would pick instead: `python -m benchmarks --help`."""

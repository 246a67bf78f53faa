"""Speed, memory and rewards of the training loop beside TRL's GRPOTrainer: `python -m benchmarks.trainer --help`."""

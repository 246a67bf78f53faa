"""A lean trainer for math RLVR with adaptive entropy regularization."""

"""Policy objectives as small functions of per-token log-probs: values, coefficients of the log-prob, metrics."""

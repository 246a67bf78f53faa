"""Embedded tasks: verifiable, offline, with difficulty tiers."""

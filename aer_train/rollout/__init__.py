"""Sampling of responses from the policy, one backend a file."""

"""Verified rewards: verifier (what users call) -> answers (exact), pool -> worker (child process) -> symbolic (math-verify)."""

from aer_train.verify.verifier import Outcome, Pending, Verdict, Verifier

__all__ = ["Outcome", "Pending", "Verdict", "Verifier"]

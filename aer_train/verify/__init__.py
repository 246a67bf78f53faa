"""Verified rewards.

verifier (what users call) -> exact (the verdict without symbolic mathematics) -> extract (where the answer is), compare (the conventions)
                           -> pool (deadlines) -> worker (a child process) -> symbolic (math-verify)
latex (one spelling), quantity (exact numbers) and shape (lists, sets, intervals) serve both comparisons.
"""

from aer_train.verify.verifier import OUTCOMES, Outcome, Pending, Verdict, Verifier

__all__ = ["OUTCOMES", "Outcome", "Pending", "Verdict", "Verifier"]

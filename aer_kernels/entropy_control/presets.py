"""Configurations by name, for whoever does not want to choose."""

from aer_kernels.entropy_control.config import EntropyControlConfig

EXPLORE_THEN_SETTLE = EntropyControlConfig(quantity="response", tau=1.2, tau_end=0.6, hold=0.4, difficulty="uniform", surplus=1.0)
"""AER as docs/study.md measured it on small policies trained from scratch: entropy above its start for two fifths of the run, then less.

Not for pretrained models: on the one it was tried on, its coefficient of .1 doubled the entropy, and what a fixed one a thirtieth as large
learned was not learned (docs/real_model.md). Nor where a policy only has to become surer: on chains of graded difficulty it solved
.14 of the hard prompts, and plain GRPO .99. With patience = 16 it adds nothing there (docs/study_appendix.md).
"""

BELOW_START = EntropyControlConfig(quantity="response", tau=0.4, kp=0.03, ki=0.003, max_coef=0.03, difficulty="uniform", surplus=1.0)
"""AER for pretrained models: entropy may fall to two fifths of its start, the share that arXiv:2510.10959 names, and is held there.

It adds nothing while entropy is above its target. With these gains and a target of 0.7 a pretrained model came to 0.58 in thirty steps
(docs/real_model.md); 0.4 has not been run.
"""

"""A study of three steps, and records of runs that were never run."""

QUICK = """
[settings.tiny]
task = "countdown"
size = "small"
lr = 1e-3
warmup_steps = [2, 1]
[settings.tiny.config]
data = {limit = 64}
rollout = {group_size = 2, max_new_tokens = 6}
optim = {prompts_per_step = 4, warmup_steps = 0}
run = {device = "auto"}

[methods.grpo]
method = {kind = "off"}
[methods.aer]
method = {kind = "aer", tau = 0.7}
[methods.broken]
optim = {grad_clip = 1e30, betas = [0.0, 0.0]}
method = {kind = "fixed", coef = 1e30}

[matrices.quick]
settings = ["tiny"]
methods = ["grpo", "aer"]
hard_shares = [0.5]
lr_scales = [2.0]
seeds = [0]
steps = 3
samples = 2
eval_limit = 4
splits = ["validation", "test"]
"""


def record(method, seed, hard, easy, target=1.0, entropy=(2.0, 1.0, 1.0), diverged=None, setting="tiny"):
    """A record whose runs had 4 samples of 2 prompts of each tier; `hard` and `easy` are right samples."""
    right = {"hard": list(hard), "easy": list(easy)}
    return {
        "setting": setting, "method": method, "hard_share": 0.5, "lr_scale": 1.0, "seed": seed, "steps": len(entropy), "diverged": diverged,
        "samples": 4, "right": {"validation": right, "test": right},
        "curves": {"entropy": list(entropy), "controlled": list(entropy), "target": [target] * len(entropy), "coef": [0.1] * len(entropy),
                   "bonus_share": [0.2] * len(entropy), "easy": [0.5] * len(entropy), "hard": [None] * (len(entropy) - 1) + [0.25]},
    }  # fmt: skip

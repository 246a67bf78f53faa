"""The whole configuration: one tree of frozen dataclasses. A field is a key of the configuration file and a flag of the command line.

`config.checks` has the rules between fields, and `config.presets` has trees with names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from aer_kernels import EntropyControlConfig

Mismatch = Literal["auto", "off", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


MOST_TOKENS, MOST_ROWS = 16384, 256
"""Of optim.tokens_per_microbatch and rollout.batch_size where they are None; a run finds out what fits, other code takes these."""


@dataclass(frozen=True)
class ModelConfig:
    """Which model is trained, and how it computes."""

    name: str = "builtin:countdown"
    """Hugging Face id, local folder, or builtin:countdown, the small warm-started policy of the demo."""
    revision: str | None = None
    """Hub revision; None is the default branch."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the matrix products. auto is bfloat16 on a GPU and float32 on a CPU."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the parameters. bfloat16 needs half the memory, and each update is rounded up or down at random, so that small ones count on
    average (torchao). It needs products in bfloat16 and one process. Gradients are summed in float32."""
    attn_implementation: str | None = None
    """Passed to transformers; None is its default, whatever the model's config.json says."""
    trust_remote_code: bool = False
    """Run Python files that come with the model. They can do whatever you can: read them first."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    unpad: bool = False
    """Train without padding: the samples of a micro-batch go through the layers as one sequence. Use it with attn_implementation
    flash_attention_2 or _3, which keep the samples apart at no cost; others mask the pairs of different samples, and get slower. A check
    at load proves that the model can do it."""
    liger: bool = False
    """Run norms, rotary positions and gated MLPs of the layers with Liger's kernels, on a GPU. The head stays that of the fused loss. A
    check at load proves that logits stay as they are."""
    share_prompts: bool | None = None
    """Read the prompt of a group once in training and scoring, not once for each response. None does it where a check at load proves it
    exact; true is an error where it is not. It needs attention that takes a mask: sdpa, eager or flex_attention."""
    lora_rank: int = 0
    """Rank of LoRA adapters (PEFT), which are then all that is trained, sampled with and saved; 0 trains the model itself. Learning rates
    are about ten times as large."""
    lora_alpha: int = 32
    """Adapters are scaled by lora_alpha / lora_rank."""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Layers that get adapters, such as q_proj v_proj; all-linear is every linear layer but the lm_head, which can have none."""


@dataclass(frozen=True)
class DataConfig:
    """Which prompts are trained on, and how they are given to the model."""

    train: str = "builtin:countdown"
    """File of JSON lines, JSON, CSV or parquet, a pattern of such files, a hub dataset id (org/name or org/name:config), or an embedded
    task: builtin:countdown, builtin:countdown4, builtin:worked, builtin:mixed, builtin:chains. An embedded task takes the share of hard
    training prompts as a suffix, as in builtin:countdown:0.25."""
    split: str = "train"
    """Split of a hub dataset or an embedded task."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset; None is its newest commit. The run's config.json records the commit that was used."""
    prompt_column: str = "problem"
    """Column with the problem: text, or (with chat) a list of messages. A name with dots reaches into columns: extra_info.question."""
    answer_column: str = "answer"
    """Column with the gold answer: text, a number, or a list of alternatives, of which any will do. A whole solution that ends in a marked
    answer is fine. Rows without an answer are dropped; a message says how many."""
    tier_column: str | None = None
    """Column with a difficulty tier, by which metrics are broken down; None puts every prompt into one tier."""
    chat: bool = False
    """Render prompts with the tokenizer's chat template (True), or with `template` alone (False)."""
    system: str | None = None
    """System message of the chat template; it takes the place of those in the prompts."""
    template_args: tuple[str, ...] = ()
    """Arguments of the chat template as name=value, such as enable_thinking=false. It must read them."""
    date: str | None = None
    """Date that a chat template with today's date writes, such as 2026-11-29. None: that of the start, which config.json then records."""
    template: str = "{problem}"
    """Text that is given to the model, or to the chat template as the last user message. {problem} is replaced by the problem."""
    max_prompt_tokens: int = 1024
    """Longer prompts are dropped; a message says how many."""
    limit: int | None = None
    """Use only the first `limit` prompts; None uses all."""


@dataclass(frozen=True)
class DifficultyConfig:
    """Which prompts are drawn, and how many responses each gets, by its pass rate: how often it was solved so far. Off by default."""

    drop_solved: float | None = None
    """Prompts with a pass rate of at least this, in (0, 1], are passed over. None passes over none."""
    recheck: int = 0
    """A solved prompt is drawn again when it was last seen this many steps ago; 0 is never."""
    target: float | None = None
    """Draw prompts by how near their pass rate is to this, in [0, 1], in place of epochs. The weight of a prompt is
    exp(-((rate - target) / width)^2 / 2), that of a new one 1. None keeps epochs."""
    width: float = 0.25
    """How far from the target a pass rate may be, > 0."""
    boost: float = 1.0
    """Responses to a prompt with a pass rate below `unsolved`, as a multiple of those to others, >= 1. A step keeps its number of
    responses, rollout.group_size * optim.prompts_per_step. 1 gives all the same."""
    unsolved: float = 0.05
    """Pass rate below which a prompt that was seen counts as unsolved, in (0, 1]."""
    min_group: int = 2
    """Fewest responses to a prompt with `boost`, in [2, rollout.group_size]."""
    decay: float = 0.5
    """What a pass rate keeps of its past with every new group, in [0, 1)."""


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled."""

    backend: Literal["hf", "vllm", "vllm_server"] = "hf"
    """hf: the policy itself, with transformers. vllm: an engine inside every training process, on its GPU. vllm_server: `vllm serve`,
    started and ended with the run, or already running somewhere. The section vllm has their options."""
    group_size: int = 8
    """Responses to each prompt, >= 2."""
    temperature: float = 1.0
    """Sampling temperature, > 0. The tempered distribution is also the one that is trained."""
    top_p: float = 1.0
    """Responses are drawn from the most likely tokens that reach this probability together, in (0, 1]. That distribution, renormalised, is
    then the one that is trained: log-probs, ratios and entropies are over these tokens, found anew in every pass."""
    max_new_tokens: int = 512
    """Longest response, tokens."""
    stop: tuple[str, ...] = ()
    """Further ends of a response, beside the end-of-sequence tokens and the chat template's end of a turn: names of tokens, such as
    <|im_end|>, or any text. An end is part of the response and is not graded."""
    batch_size: int | None = None
    """Responses generated at once; with vLLM, by each engine. Changes memory and speed only, never what the samples are drawn from. None:
    as many as fit into the memory that is free at the start, up to 256; config.json records how many."""
    overlong: Literal["keep", "mask"] = "keep"
    """What happens to responses cut at max_new_tokens. keep trains them like any other. mask takes them out of the loss (DAPO's overlong
    filtering); they still count in their group's mean and in the metrics."""
    refill_rounds: int = 0
    """How often, within a step, groups that teach nothing are replaced by fresh ones whose rewards vary; 0 is off. Groups that still teach
    nothing after the last round stay."""
    refill: Literal["no_signal", "zero_variance"] = "no_signal"
    """Which groups are replaced. zero_variance: all groups of equal rewards (DAPO's dynamic sampling). no_signal: only those whose tokens
    get nothing from the method this step either. With an entropy bonus on every prompt, no_signal replaces nothing while the coefficient is
    not 0."""
    ahead: int = 0
    """1: the servers of vllm.urls sample the next step while one trains, with the weights before it. objective.mismatch weighs the samples
    for that. 0: sampling and training take turns."""


@dataclass(frozen=True)
class VLLMConfig:
    """The engine behind rollout.backend vllm and vllm_server."""

    probe_tolerance: float | None = None
    """After every weight update, vLLM and the trainer score the same fixed texts. A mean |difference| of the log-probs above this many nats
    stops the run. None: 1e-3 in float32, 0.05 in bfloat16."""
    max_model_len: int | None = None
    """Most tokens of a prompt and its response together. None: data.max_prompt_tokens + rollout.max_new_tokens, or less if the model allows
    less."""
    gpu_memory_utilization: float = 0.45
    """Share of the GPU's memory for vLLM, in (0, 1]."""
    sleep_level: Literal[0, 1] = 1
    """What vLLM does while the policy trains on the same GPU. 1: its weights move to host memory and its KV cache is dropped. 0: both
    stay."""
    tensor_parallel_size: int = 1
    """GPUs that share one copy of the model (vllm_server)."""
    data_parallel_size: int = 1
    """Copies of the model behind one URL (vllm_server)."""
    urls: tuple[str, ...] = ()
    """Running servers (vllm_server), such as http://node1:8000 or http+unix://%2Fpath%2Fto%2Fsocket; prompts go to them in turn. Empty
    starts one on this machine, which no other user can reach."""
    start_timeout: float = 900.0
    """Seconds within which a server must be up."""
    request_timeout: float = 1800.0
    """Seconds within which a server must answer a request for a response."""
    weight_transfer: Literal["auto", "ipc", "nccl", "disk"] = "auto"
    """How a server gets the weights. ipc: over the memory of the GPUs that it shares with the trainer. nccl: over the network between
    GPUs. disk: over a folder that both see. auto: disk on a CPU; on GPUs, ipc for a server that is started and nccl for urls."""
    engine_args: tuple[str, ...] = ()
    """Further engine arguments of vLLM as name=value, such as enforce_eager=true kv_cache_dtype=fp8."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """The policy objective."""

    kind: Literal["ppo", "cispo", "gspo"] = "ppo"
    """ppo: the clipped ratio (GRPO, Dr.GRPO, DAPO). cispo: the clipped, detached ratio times the log-prob. gspo: a ratio for each
    sequence."""
    advantage: Literal["group_std", "group_mean", "rloo"] = "group_std"
    """group_std: (r - mean) / (std + 1e-4). group_mean: r - mean (Dr.GRPO). rloo: r - the mean of the group's other responses."""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """token_mean: mean over all loss tokens of the update. sequence_mean: mean over each response, then over responses. constant: sum over
    tokens / (responses * max_new_tokens) (Dr.GRPO)."""
    clip_low: float = 0.2
    """The ratio's lower bound is 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio's upper bound is 1 + clip_high."""
    dual_clip: float | None = None
    """Bound c > 1 of the dual clip for negative advantages; None is off."""
    mismatch: Mismatch = "auto"
    """Importance weights that correct for the difference between the trainer's and the rollout backend's log-probs. They are of each token
    or of the whole response. Above mismatch_cap they are cut to it (truncate) or set to 0 (mask). auto: off for rollout.backend hf, else
    token_truncate (sequence_truncate for gspo). All but token_truncate cost a forward pass where optim.updates_per_step is 1."""
    mismatch_cap: float = 2.0
    """Largest importance weight, >= 1."""
    kl_coef: float = 0.0
    """Coefficient of the divergence from the policy that the run began with, >= 0; 0 is off. It is weighed as the policy term is. Each
    step costs one more forward pass, and a second model is held, unless there are adapters to turn off (model.lora_rank)."""
    kl: Literal["k1", "abs_k1", "k2", "k3"] = "k3"
    """Which estimate of it, from the distance d of the log-probs: d (k1), |d| (abs_k1), d^2 / 2 (k2), exp(-d) + d - 1 (k3, GRPO's). On
    average the gradient of k2 is that of KL(policy, reference), that of k3 is of KL(reference, policy), and that of k1 is 0."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, and the size of a step."""

    lr: float = 1e-6
    """Learning rate of AdamW, > 0."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's betas."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    state: Literal["float32", "8bit"] = "float32"
    """What AdamW's moments are kept in. 8bit needs a quarter of the memory (torchao), and one process."""
    grad_clip: float = 1.0
    """Largest gradient norm, > 0."""
    warmup_steps: int = 5
    """Optimizer updates of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate after the warm-up: constant, or down to 0 at the last update."""
    prompts_per_step: int = 32
    """Prompts of a step, over all processes."""
    updates_per_step: int = 1
    """Optimizer updates on each batch of rollouts, each on an equal share of its prompts. 1 is strictly on-policy."""
    tokens_per_microbatch: int | None = None
    """Padded tokens in one forward and backward pass. Changes memory only, never the gradient. None: as many as fit into the memory that is
    free at the start, up to 16384; config.json records how many."""
    dead_samples: Literal["measure", "skip"] = "measure"
    """What happens to samples without a gradient; they are in no training pass. measure: a pass without a graph keeps all metrics exact.
    skip: no pass, unless the method learns from their entropy; entropy/mean is then estimated from their recorded log-probs."""
    loss_memory_mib: int | None = None
    """Workspace of the fused loss in MiB; None lets the planner choose."""


@dataclass(frozen=True)
class EvalConfig:
    """What is evaluated during training, and by `aer-train eval`."""

    data: str | None = None
    """Prompts to evaluate on, in the forms of data.train, or suite:NAME. Columns and template are those of data."""
    suites: tuple[Literal["aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench", "gsm8k"], ...] = ()
    """Benchmarks to evaluate on; each is a tier of its own. Without suites and without data there is no evaluation."""
    suite_dir: str | None = None
    """Folder with the suites as NAME.jsonl (columns problem, answer, id). None takes them from the hub, at pinned commits."""
    split: str = "test"
    """Split of a hub dataset in data."""
    revision: str | None = None
    """Revision of a hub dataset in data. None is data.revision if it is the dataset that is trained on, else the newest commit."""
    every: int = 0
    """Evaluate every this many steps; 0 means only after the last one. Step 0 is always evaluated."""
    samples: int = 8
    """Responses to each prompt: the n of avg@n, pass@k and majority@k."""
    temperature: float = 1.0
    """Sampling temperature. 0 is greedy; samples must then be 1."""
    top_p: float = 1.0
    """Responses are drawn from the most likely tokens that reach this probability together, in (0, 1]."""
    limit: int | None = None
    """Use only the first `limit` prompts; None uses all."""


@dataclass(frozen=True)
class RewardConfig:
    """How responses are graded."""

    kind: str = "math"
    """What is right: accuracy, difficulty weights and pass@k come from it. math: mathematical equality with the gold answer. countdown,
    countdown4, worked, mixed, chains: the embedded tasks. Or a dotted path to a function, or the URL of a server; both give numbers in
    [0, 1]."""
    functions: tuple[str, ...] = ()
    """What else is rewarded: dotted paths to functions, and URLs of servers, that give any finite number, or None for nothing."""
    weights: tuple[float, ...] = ()
    """Weight of reward.kind, then of each of reward.functions; the reward is the weighted sum. Empty is 1 for each."""
    on_failure: Literal["zero", "mask", "stop"] = "zero"
    """What becomes of a response for which a function or server failed. zero: the function adds nothing. mask: the response is not trained
    and counts in no mean of its group. stop: the run ends."""
    timeout: float = 5.0
    """Seconds for one answer."""
    workers: int = 2
    """Processes of the verifier and of each function, and requests to each server at the same time, for each training process."""
    request_timeout: float = 60.0
    """Seconds that a server of a reward may be silent, > 0."""
    retries: int = 3
    """How often a request to a server of a reward is repeated when it is not answered, or with a status of 429 or at least 500."""
    lenient: bool = False
    """For kind math: ignore percent signs and the brackets around a list, and of several boxes count the last one. It is for evaluation
    beside lenient graders. A policy that is trained on it learns to exploit it."""
    max_failure_frac: float = 0.5
    """Stop the run, with a checkpoint, when more than this share of the responses time out or crash in 3 steps in a row. 1 never stops."""
    tolerance: float = 1e-6
    """Rewards of a group that differ by at most this count as equal: float noise is no learning signal."""
    overlong_buffer: int = 0
    """Tokens before rollout.max_new_tokens in which a longer response loses more and more reward (DAPO's soft overlong punishment); 0 is
    off."""
    overlong_penalty: float = 1.0
    """What a response of max_new_tokens loses. It lowers the advantage, never the accuracy that difficulty weights and metrics see."""


@dataclass(frozen=True)
class RunConfig:
    """Where a run writes, how long it is, and what it records."""

    out: str = "runs/run"
    """Run folder. It must not exist yet, or be empty, unless the run is resumed."""
    seed: int = 0
    """Seed of everything random in the run."""
    steps: int = 100
    """Training steps."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is cuda where there is a GPU."""
    threads: int | None = None
    """CPU threads of torch; None leaves torch's default. Bit-exact resume needs the same number."""
    timeout: float = 1800.0
    """Seconds that one process waits for the others before the job ends. It must be longer than the rollouts of a step can differ."""
    save_every: int = 20
    """Write a checkpoint every this many steps, and after the last one; 0 means only then."""
    keep: int = 2
    """How many checkpoints are kept; older ones are deleted."""
    save_samples_every: int = 1
    """Write the samples of every n-th step to samples/; 0 means never."""
    bonus_share_every: int = 0
    """At every n-th step, measure the entropy bonus' share of the gradient norm (optim/bonus_share). It costs one more backward pass and a
    copy of the gradients; 0 means never. entropy/bonus_share is the same at the logits, and is free."""
    sinks: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that receive the metrics, beside metrics.jsonl. A resumed run goes on with the run that it has there."""
    project: str = "aer"
    """Project of wandb and trackio."""
    entity: str | None = None
    """Team or user of wandb; None is your default."""
    sink_samples: int = 0
    """How many samples to send to the trackers as a table, whenever samples are saved (save_samples_every)."""
    push_to_hub: str | None = None
    """Repository of the Hugging Face hub (ORG/NAME) to which the last checkpoint goes when the run ends, with a model card that says how it
    was made. It is made private when there is none. You must be logged in before the first step."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything about a training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    difficulty: DifficultyConfig = field(default_factory=DifficultyConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    vllm: VLLMConfig = field(default_factory=VLLMConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    method: Any = field(default_factory=EntropyControlConfig)
    """Options of the entropy method. Which ones there are depends on method.kind (`aer_kernels.methods`)."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    run: RunConfig = field(default_factory=RunConfig)

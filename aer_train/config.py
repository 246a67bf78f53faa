"""The whole configuration: one tree of frozen dataclasses, checked when it is built. Presets are functions at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from aer_kernels import EntropyControlConfig

Mismatch = Literal["auto", "off", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@dataclass(frozen=True)
class ModelConfig:
    name: str = "builtin:countdown"
    """Hugging Face id, local folder, or builtin:countdown (the warm-started demo policy inside the package)."""
    revision: str | None = None
    """Hub revision; None is the default branch."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype. Parameters and optimizer state stay float32; auto is bfloat16 on a GPU, float32 on a CPU."""
    attn_implementation: str | None = None
    """Passed to transformers; None is its default."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    unpad: bool = False
    """Train without padding: the samples of a micro-batch go through the layers as one sequence. For attn_implementation flash_attention_2
    or _3, which keep the samples apart at no cost; any other one masks the pairs of different samples, and is slower so. Proved at load."""


@dataclass(frozen=True)
class DataConfig:
    train: str = "builtin:countdown"
    """JSONL or parquet file, a pattern of such files, hub dataset id (org/name or org/name:config), or an embedded task:
    builtin:countdown, builtin:countdown4, builtin:worked, builtin:mixed. A share of hard training prompts may follow
    (builtin:countdown:0.25)."""
    split: str = "train"
    """Split of a hub dataset."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset; None is its newest commit. The run's config.json holds the commit that was used."""
    prompt_column: str = "problem"
    answer_column: str = "answer"
    """Gold answers: text (a whole solution that ends in a marked answer is fine), numbers, or lists of one."""
    tier_column: str | None = None
    """Column with a difficulty tier; None puts every prompt into one tier."""
    chat: bool = False
    """Render prompts with the tokenizer's chat template (True) or with `template` alone (False)."""
    system: str | None = None
    """System message of the chat template."""
    template: str = "{problem}"
    """Text given to the model (or to the chat template as the user message); {problem} is replaced."""
    max_prompt_tokens: int = 1024
    """Longer prompts are dropped, and counted in a message."""
    limit: int | None = None
    """Use only the first `limit` prompts; None uses all."""


@dataclass(frozen=True)
class RolloutConfig:
    backend: Literal["hf", "vllm", "vllm_server"] = "hf"
    """hf: transformers' generate. vllm: an engine inside every training process, on its GPU. vllm_server: `vllm serve`, started and ended
    with the run, or already running somewhere. See the section vllm."""
    group_size: int = 8
    """Responses per prompt, >= 2."""
    temperature: float = 1.0
    """Sampling temperature, > 0; also the temperature of the distribution that is trained."""
    max_new_tokens: int = 512
    batch_size: int = 256
    """Sequences generated at once, with vLLM by each engine: memory and speed only, never what the samples are drawn from."""
    overlong: Literal["keep", "mask"] = "keep"
    """Responses cut at max_new_tokens: keep trains them like any other, mask takes them out of the loss (DAPO's overlong filtering); they
    still count in their group's mean and in the metrics."""
    refill_rounds: int = 0
    """How often groups that teach nothing may be replaced by fresh ones whose rewards vary, within a step; 0 is off. What is left then is
    kept."""
    refill: Literal["no_signal", "zero_variance"] = "no_signal"
    """Which groups are replaced. zero_variance: all of equal rewards (DAPO's dynamic sampling). no_signal: those of them without entropy
    pressure, w(q) = 0; so all-wrong groups stay while AER explores on them, and without an entropy term both rules are the same."""


@dataclass(frozen=True)
class VLLMConfig:
    """The engine behind rollout.backend vllm and vllm_server."""

    probe_tolerance: float | None = None
    """After every weight update vLLM scores fixed texts beside the trainer: the largest mean |difference| (nats) of the log-probs. More
    stops the run. None: 1e-3 in float32, 0.05 in bfloat16."""
    max_model_len: int | None = None
    """Longest prompt and response together, tokens. None: data.max_prompt_tokens + rollout.max_new_tokens, or less if the model ends
    before."""
    gpu_memory_utilization: float = 0.45
    """Share of the GPU's memory for vLLM, in (0, 1]."""
    sleep_level: Literal[0, 1] = 1
    """While the policy trains on the same GPU - 1: vLLM's weights wait in the host's memory and its KV cache is dropped; 0: both stay."""
    tensor_parallel_size: int = 1
    """GPUs that share one copy of the model (vllm_server)."""
    data_parallel_size: int = 1
    """Copies of the model behind one URL (vllm_server)."""
    urls: tuple[str, ...] = ()
    """Running servers (vllm_server), such as http://node1:8000; prompts go to them in turn. Empty: one is started on this machine."""
    port: int | None = None
    """Of the server that is started; None takes a free one."""
    start_timeout: float = 900.0
    """Seconds within which a server must answer."""
    request_timeout: float = 1800.0
    """Seconds within which a server must have answered a request for a response."""
    weight_transfer: Literal["auto", "ipc", "nccl", "disk"] = "auto"
    """How a server gets the weights. ipc: over the memory of the GPUs that it shares with the trainer. nccl: over the network between
    GPUs. disk: over a folder that both see. auto: disk on a CPU, ipc for a server that is started, nccl for urls."""
    engine_args: tuple[str, ...] = ()
    """Further engine arguments of vLLM as name=value, such as enforce_eager=true kv_cache_dtype=fp8."""


@dataclass(frozen=True)
class ObjectiveConfig:
    kind: Literal["ppo", "cispo", "gspo"] = "ppo"
    """ppo: clipped ratio (GRPO, Dr.GRPO, DAPO). cispo: clipped, detached ratio times log-prob. gspo: sequence-level ratio."""
    advantage: Literal["group_std", "group_mean", "rloo"] = "group_std"
    """group_std: (r - mean) / (std + 1e-4). group_mean: r - mean (Dr.GRPO). rloo: r - mean of the others."""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """token_mean: over all loss tokens of the update. sequence_mean: mean over each response, then over responses.
    constant: sum over tokens / (responses * max_new_tokens) (Dr.GRPO)."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    """Bound c > 1 of the dual clip for negative advantages; None is off."""
    mismatch: Mismatch = "auto"
    """Importance weights for the difference between the trainer's and the rollout backend's log-probs, of each token or of the whole
    response, cut to mismatch_cap (truncate) or set to 0 above it (mask). All but token_truncate cost a forward pass where
    optim.updates_per_step is 1. auto: off for rollout.backend hf, else token_truncate (sequence_truncate for gspo)."""
    mismatch_cap: float = 2.0
    """Largest importance weight, >= 1."""


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    """Largest gradient norm, > 0."""
    warmup_steps: int = 5
    """Optimizer updates of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: constant, or down to 0 at the last update."""
    prompts_per_step: int = 32
    updates_per_step: int = 1
    """Optimizer updates on each batch of rollouts, each on an equal share of its prompts. 1 is strictly on-policy."""
    tokens_per_microbatch: int = 16384
    """Padded tokens in a forward/backward pass: memory only, never the gradient."""
    loss_memory_mib: int | None = None
    """Workspace of the fused loss in MiB; None lets the planner choose."""


@dataclass(frozen=True)
class EvalConfig:
    data: str | None = None
    """Prompts to evaluate on (same forms as data.train), or suite:NAME. Columns and template as in data."""
    suites: tuple[Literal["aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench", "gsm8k"], ...] = ()
    """Benchmarks to evaluate on, each a tier of its own. Without these and without data there is no evaluation."""
    suite_dir: str | None = None
    """Folder with the suites as NAME.jsonl (columns problem, answer, id); None takes the pinned commits from the hub."""
    split: str = "test"
    """Split of a hub dataset in data."""
    revision: str | None = None
    """Revision of a hub dataset in data; None is data.revision where it is the dataset that is trained on, else the newest commit."""
    every: int = 0
    """Evaluate every this many steps; 0 means only after the last one. Step 0 is always evaluated."""
    samples: int = 8
    """Responses per prompt, n of avg@n, pass@k and majority@k."""
    temperature: float = 1.0
    """0 is greedy (then samples must be 1)."""
    limit: int | None = None


@dataclass(frozen=True)
class RewardConfig:
    kind: str = "math"
    """math: mathematical equality with the gold answer. countdown, countdown4, worked, mixed: the embedded tasks. Or a dotted path to a
    function (response_text, answer) -> float in [0, 1]."""
    timeout: float = 5.0
    """Seconds for one answer."""
    workers: int = 2
    """Verifier processes."""
    lenient: bool = False
    """For kind math: percent signs and the brackets around a list count for nothing, and of several boxes the last one counts. For
    evaluation beside lenient graders: a policy that is trained on it learns to exploit it."""
    max_failure_frac: float = 0.5
    """A run stops, with a checkpoint, when more than this share of the responses time out or crash in 3 steps in a row; 1 never stops."""
    tolerance: float = 1e-6
    """Rewards of a group that differ by at most this are equal: float noise is no learning signal."""
    overlong_buffer: int = 0
    """Tokens before rollout.max_new_tokens in which a response is penalised more and more (DAPO's soft overlong punishment); 0 is off."""
    overlong_penalty: float = 1.0
    """What a response of max_new_tokens loses; it lowers the advantage, never the accuracy that difficulty weights and metrics see."""


@dataclass(frozen=True)
class RunConfig:
    out: str = "runs/run"
    """Run folder. Must not exist yet, unless the run is resumed."""
    seed: int = 0
    steps: int = 100
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    """CPU threads of torch; None leaves torch's default. Bit-exact resume needs the same number."""
    timeout: float = 1800.0
    """Seconds that one process of several waits for the others before the job ends: longer than rollouts of a step can differ."""
    save_every: int = 20
    """Checkpoint every this many steps, and after the last one; 0 means only then."""
    keep: int = 2
    """Checkpoints kept, newest first."""
    save_samples_every: int = 1
    """Write the samples of every n-th step to samples/; 0 means never."""
    bonus_share_every: int = 0
    """Measure the entropy bonus' share of the gradient norm (optim/bonus_share) at every n-th step, by one more backward pass and a copy of
    the gradients; 0 means never. entropy/bonus_share, which costs nothing, is that share at the logits."""
    sinks: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that receive the metrics beside metrics.jsonl."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything about a training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    vllm: VLLMConfig = field(default_factory=VLLMConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    entropy: EntropyControlConfig = field(default_factory=EntropyControlConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    run: RunConfig = field(default_factory=RunConfig)

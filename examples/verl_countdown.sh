#!/usr/bin/env bash
# verl's trainer, plain and with AER, on the embedded Countdown task: nothing to download, no GPU. Prints a table: the share of held-out
# prompts that are solved at the first try (pass@1), and by any of 16 samples (pass@16).
#
#   bash examples/verl_countdown.sh                  # 140 steps, two seeds
#   OUT=FOLDER bash examples/verl_countdown.sh       # keep data, logs and checkpoints there
#   STEPS=3 SEEDS=0 METHODS=AER PROMPTS=16 bash examples/verl_countdown.sh trainer.save_freq=1    # any further overrides
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$(mktemp -d)}
steps=${STEPS:-140}
python=${PYTHON:-python}
export PYTHONPATH="$here:$here/..${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
export VERL_USE_EXTERNAL_MODULES=verl_cpu VERL_PLATFORM=cpu TQ_NUM_THREADS=1 HYDRA_FULL_ERROR=1
# Ray starts workers ahead, which verl cannot use (its own have another environment), and lets them wait for everybody else
export RAY_prestart_worker_first_driver=0 RAY_worker_niceness=0 RAY_USAGE_STATS_ENABLED=0

run() {  # name, seed, further overrides
  local name=$1 seed=$2 folder="$out/$1-$2"
  shift 2
  "$python" -m aer_kernels.integrations.verl \
    data.train_files="$data/train.parquet" data.val_files="$data/test.parquet" data.seed="$seed" \
    data.train_batch_size=32 data.max_prompt_length=16 data.max_response_length=6 data.dataloader_num_workers=0 \
    algorithm.adv_estimator=grpo \
    actor_rollout_ref.model.path="$data/policy" actor_rollout_ref.model.use_remove_padding=False \
    actor_rollout_ref.model.enable_gradient_checkpointing=False \
    +actor_rollout_ref.model.override_config.attn_implementation=eager \
    actor_rollout_ref.actor.strategy=fsdp2 actor_rollout_ref.actor.use_torch_compile=False \
    actor_rollout_ref.actor.fsdp_config.use_torch_compile=False +actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32 \
    actor_rollout_ref.actor.ppo_mini_batch_size=16 actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=128 \
    actor_rollout_ref.actor.optim.lr=2e-4 actor_rollout_ref.actor.optim.betas='[0.9,0.99]' actor_rollout_ref.actor.optim.lr_warmup_steps=5 \
    actor_rollout_ref.actor.optim.weight_decay=0 \
    actor_rollout_ref.rollout.name=cpu actor_rollout_ref.rollout.n=8 actor_rollout_ref.rollout.seed="$seed" \
    actor_rollout_ref.rollout.tensor_model_parallel_size=1 actor_rollout_ref.rollout.agent.num_workers=1 \
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=256 \
    actor_rollout_ref.rollout.val_kwargs.n=16 actor_rollout_ref.rollout.val_kwargs.do_sample=True \
    actor_rollout_ref.rollout.val_kwargs.temperature=1.0 \
    reward.num_workers=1 reward.custom_reward_function.path="$here/verl_countdown.py" \
    transfer_queue.backend.SimpleStorage.num_data_storage_units=1 \
    trainer.device=cpu trainer.n_gpus_per_node=1 trainer.nnodes=1 trainer.logger='["file"]' \
    trainer.total_epochs=1000 trainer.total_training_steps="$steps" trainer.val_before_train=False \
    trainer.test_freq="$steps" trainer.save_freq=-1 trainer.resume_mode=disable \
    trainer.default_local_dir="$folder/checkpoints" trainer.validation_data_dir="$folder/validation" \
    +ray_kwargs.ray_init.object_store_memory=200000000 ray_kwargs.ray_init.num_cpus=8 +ray_kwargs.ray_init.num_gpus=1 \
    +ray_kwargs.ray_init.include_dashboard=False \
    hydra.run.dir="$folder" "$@" >"$out/$name-$seed.log" 2>&1 || { tail -n 50 "$out/$name-$seed.log" >&2; return 1; }
}

echo '| method | seed | easy pass@1 | easy pass@16 | hard pass@1 | hard pass@16 | seconds |'
echo '|---|---|---|---|---|---|---|'
for seed in ${SEEDS:-0 1}; do
  data="$out/data-$seed-${PROMPTS:-all}"
  [ -d "$data" ] || "$python" "$here/verl_countdown.py" data "$data" --seed "$seed" ${PROMPTS:+--prompts "$PROMPTS"} 2>/dev/null
  for name in ${METHODS:-plain AER}; do
    options=(+aer.kind=off)
    if [ $name = AER ]; then  # EXPLORE_THEN_SETTLE, which suits small policies, not pretrained models
      options=(+aer.quantity=response +aer.tau=1.2 +aer.tau_end=0.6 +aer.hold=0.4 +aer.difficulty=uniform +aer.surplus=1.0 +aer.head=true)
    fi
    started=$SECONDS
    VERL_FILE_LOGGER_PATH="$out/$name-$seed.jsonl" run $name "$seed" "${options[@]}" "$@"
    "$python" "$here/verl_countdown.py" row "$out/$name-$seed/validation" --name "$name" --seed "$seed" | sed "s/\$/ $((SECONDS - started)) |/"
  done
done

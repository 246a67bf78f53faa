"""What a model cannot be given: sequences longer than its positions, tokens outside of its embedding. Told before the first step."""

from __future__ import annotations

from collections.abc import Sequence

from aer_train.config.tree import TrainConfig
from aer_train.data.prompts import PromptSet
from aer_train.model import Policy
from aer_train.model.positions import positions


def check_prompts(policy: Policy, config: TrainConfig, sets: Sequence[PromptSet]) -> None:
    """Check, before the first step, that every prompt can be sampled.

    Args:
        sets: all prompts that will be sampled.
    Raises:
        ValueError - a prompt has no room for its response, or a token that the model does not have.
    """
    rows = policy.model.get_input_embeddings().weight.shape[0]
    engine = None if config.rollout.backend == "hf" else config.vllm.max_model_len
    limits = [(positions(policy.model.config), "the model's positions"), (engine, "vllm.max_model_len")]
    limit, name = min(((number, text) for number, text in limits if number is not None), default=(None, ""))
    for prompts in sets:
        source, longest, new = prompts.origin["source"], prompts.longest, config.rollout.max_new_tokens
        if limit is not None and longest + new > limit:
            within = f"prompts of {longest} tokens ({source}) within {name} ({limit})"
            if longest >= limit:
                raise ValueError(f"data.max_prompt_tokens must leave room for responses, got {within}")
            raise ValueError(
                f"rollout.max_new_tokens must leave room for {within}, got {new}: lower it to {limit - longest}, "
                "or lower data.max_prompt_tokens"
            )
        if prompts.largest_token >= rows:
            token = policy.tokenizer.convert_ids_to_tokens(prompts.largest_token)
            raise ValueError(
                f"model.name must have an embedding for every token of the prompts, got {rows} rows and token {prompts.largest_token} "
                f"({token!r}) in {source}"
            )

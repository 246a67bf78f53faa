"""The token that fills up a batch."""

from aer_train.model import Policy


def pad_id(policy: Policy) -> int:
    """Return an id to pad with: the tokenizer's if the model has an embedding for it, else 0. Padding is masked, so that any id will do."""
    found = policy.tokenizer.pad_token_id
    return found if 0 <= found < policy.model.get_input_embeddings().weight.shape[0] else 0

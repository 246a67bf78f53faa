"""The model that is trained: where it comes from, how it is loaded and proved, and the policy that it then is."""

from aer_train.model.device import compute_dtype, resolve_device
from aer_train.model.ends import cut, response_text, text_end, with_stops
from aer_train.model.head import Logits, fused_options
from aer_train.model.load import load_policy
from aer_train.model.policy import Policy, forward_pass
from aer_train.model.reference import Reference, frozen_digest, load_reference
from aer_train.model.source import COUNTDOWN_POLICY, load_error, model_source, published_config, same_model

__all__ = [
    "COUNTDOWN_POLICY",
    "Logits",
    "Policy",
    "Reference",
    "compute_dtype",
    "cut",
    "forward_pass",
    "frozen_digest",
    "fused_options",
    "load_error",
    "load_policy",
    "load_reference",
    "model_source",
    "published_config",
    "resolve_device",
    "response_text",
    "same_model",
    "text_end",
    "with_stops",
]

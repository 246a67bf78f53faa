"""Heads split over processes (gloo): a vocabulary in shards, and weights that FSDP2 or DTensor split. Compared with one process."""

from itertools import pairwise

import pytest
import torch
import torch.distributed as dist

from aer_kernels import FusedLMHead, fused_logprobs, fused_policy_loss
from aer_kernels.testing import head_inputs
from tests.ranks import spawn

pytestmark = pytest.mark.slow

N, V, D, R = 37, 517, 24, 3
SHARDS = {2: [300, 217], 4: [100, 250, 7, 160]}  # uneven; the third of four holds fewer columns than anything else
UPSTREAM = (torch.linspace(-1, 1, N), torch.linspace(1, -1, N))


def case(dtype=torch.float32):
    """A head with padded vocabulary (a whole shard of -inf for four ranks), a low-rank update and an off-policy batch."""
    x = head_inputs(N, V, D, dtype=dtype, bias=True)
    bias = x.bias.clone()
    bias[350:357] = -torch.inf
    x.targets[((x.targets >= 350) & (x.targets < 357)) | (x.targets == 516)] = 3
    generator = torch.Generator().manual_seed(8)
    lora = ((torch.randn(R, D, generator=generator) / 5).to(dtype), (torch.randn(V, R, generator=generator) / 2).to(dtype))
    mask = torch.arange(N) % 5 != 2
    return x, bias, lora, mask


def run(kind, impl, dtype, columns=slice(None), **options):
    """Outputs and gradients of one head, of which this process holds some vocabulary rows."""
    x, bias, (lora_a, lora_b), mask = case(dtype)
    leaves = [t.clone().requires_grad_() for t in (x.hidden, lora_a, x.weight[columns], bias[columns], lora_b[columns])]
    hidden, a, weight, bias, b = leaves
    shared = {"bias": bias, "lora_a": a, "lora_b": b, "loss_mask": mask, "temperature": 0.8, "impl": impl, **options}
    if kind == "logprobs":
        out = fused_logprobs(hidden, weight, x.targets, **shared)
        total, outputs = (UPSTREAM[0] * out.logprobs + UPSTREAM[1] * out.entropy).sum(), [out.logprobs, out.entropy, out.logsumexp]
    else:
        policy = {"advantages": UPSTREAM[0], "old_logprobs": -torch.linspace(0, 4, N), "entropy_coef": 0.1}
        out = fused_policy_loss(hidden, weight, x.targets, **shared, **policy)
        total, outputs = out.loss, [out.loss, out.logprobs, out.entropy, out.metrics["num_grad_tokens"]]
    return [t.detach() for t in outputs], torch.autograd.grad(total, leaves)


FLOOR = torch.linspace(-1.0, 1.0, N)
VARIANTS = {
    "plain": {},
    "all_rows": {"select_rows": False},
    "batch_invariant": {"batch_invariant": True},
    "small_budget": {"memory_budget": 260_000},
    "floor": {"floor": FLOOR},
    "floor_of_entropy": {"floor": FLOOR, "floor_scope": "entropy"},
}


def vocab_parallel():
    rank, world = dist.get_rank(), dist.get_world_size()
    start = sum(SHARDS[world][:rank])
    columns = slice(start, start + SHARDS[world][rank])
    group = dist.group.WORLD
    found = {}
    for impl in ("torch", "triton"):
        for kind in ("logprobs", "policy"):
            for name, options in VARIANTS.items():
                dtype = torch.bfloat16 if name == "all_rows" else torch.float32
                found[impl, kind, name] = run(kind, impl, dtype, columns, vocab_group=group, vocab_start=start, **options)
    even = 129 * 4 // world
    columns = slice(rank * even, (rank + 1) * even)
    found["equal_shards"] = run("logprobs", "torch", torch.float32, columns, vocab_group=group)
    try:
        run("logprobs", "torch", torch.float32, columns=slice(start, start + SHARDS[world][rank]), vocab_group=group)
    except ValueError as error:
        found["unequal"] = str(error)
    return found


def sharded_weights():
    rank, world = dist.get_rank(), dist.get_world_size()
    """Each rank has its own tokens: the gradient must be the whole sum over ranks, here compared on the gathered weight."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))
    x, _, _, _ = case()
    mine = slice(rank * 9, rank * 9 + 9)
    weight = torch.nn.Parameter(distribute_tensor(x.weight, mesh, [Shard(0)]))
    found = {}
    for name, call in (
        ("logprobs", fused_logprobs),
        ("policy", lambda *a: fused_policy_loss(*a, advantages=UPSTREAM[0][mine], normalizer=9.0)),
    ):
        out = call(x.hidden[mine], weight, x.targets[mine])
        loss = out.loss if name == "policy" else out.entropy.sum()
        found[name] = torch.autograd.grad(loss, weight)[0].full_tensor()
    tensor_parallel = fused_logprobs(x.hidden, weight, x.targets, vocab_group=mesh.get_group())
    found["tensor_parallel"] = torch.autograd.grad(tensor_parallel.entropy.sum(), weight)[0].full_tensor()
    head = FusedLMHead(D, V)
    with torch.no_grad():
        head.weight.copy_(x.weight)
    fully_shard(head, mesh=mesh)
    head(x.hidden[mine], x.targets[mine], advantages=UPSTREAM[0][mine], normalizer=9.0).loss.backward()
    found["fsdp2"] = head.weight.grad.full_tensor()
    return found


@pytest.fixture(scope="module", params=[2, 4], ids="{}_ranks".format)
def ranks(request, tmp_path_factory):
    return request.param, spawn(vocab_parallel, request.param, tmp_path_factory.mktemp("ranks"))


def assert_equals_one_process(ranks, key, want, columns):
    outputs, (hidden, a, weight, bias, b) = want
    for rank, found in enumerate(ranks):
        got_outputs, (got_hidden, got_a, got_weight, got_bias, got_b) = found[key]
        low = got_hidden.dtype == torch.bfloat16
        close = {"rtol": 2e-2, "atol": 2e-2} if low else {"rtol": 2e-4, "atol": 1e-5}
        for got, expected in zip(got_outputs, outputs, strict=True):
            torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-5)
        for got, expected in ((got_hidden, hidden), (got_a, a)):
            torch.testing.assert_close(got, expected, **close)
            assert torch.equal(got, ranks[0][key][1][0 if got is got_hidden else 1]), "the same bits on every rank"
        for got, expected in ((got_weight, weight), (got_bias, bias), (got_b, b)):
            torch.testing.assert_close(got, expected[columns[rank]], **close)
        for got, first in zip(got_outputs, ranks[0][key][0], strict=True):
            assert torch.equal(got, first), "the same bits on every rank"


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("kind", ["logprobs", "policy"])
@pytest.mark.parametrize("name", VARIANTS)
def test_vocabulary_in_uneven_shards(name, kind, impl, ranks):
    world, found = ranks
    edges = [sum(SHARDS[world][:r]) for r in range(world + 1)]
    columns = [slice(a, b) for a, b in pairwise(edges)]
    dtype = torch.bfloat16 if name == "all_rows" else torch.float32
    options = {k: v for k, v in VARIANTS[name].items() if k != "memory_budget"}
    assert_equals_one_process(found, (impl, kind, name), run(kind, impl, dtype, **options), columns)


def test_shards_of_one_size_need_no_start(ranks):
    world, found = ranks
    size = 129 * 4 // world
    want = run("logprobs", "torch", torch.float32, slice(0, 516))
    assert_equals_one_process(found, "equal_shards", want, [slice(r * size, (r + 1) * size) for r in range(world)])


def test_unequal_shards_need_a_start(ranks):
    world, found = ranks
    assert all(f["unequal"] == f"vocab_start must be given when shards differ in size, got None with {SHARDS[world]} rows" for f in found)


@pytest.mark.parametrize("world", [2, 4])
def test_gradients_of_sharded_weights_are_whole(world, tmp_path):
    """A gathered DTensor gives each rank the sum, not a slice of its own gradient; FSDP2 averages, as it always does.

    As a vocabulary-parallel head the same DTensor (517 rows: unequal shards) keeps the gradient of its own rows.
    """
    x, *_ = case()
    total = {"logprobs": torch.zeros(V, D), "policy": torch.zeros(V, D)}
    for rank in range(world):
        mine = slice(rank * 9, rank * 9 + 9)
        weight = x.weight.clone().requires_grad_()
        total["logprobs"] += torch.autograd.grad(fused_logprobs(x.hidden[mine], weight, x.targets[mine]).entropy.sum(), weight)[0]
        loss = fused_policy_loss(x.hidden[mine], weight, x.targets[mine], advantages=UPSTREAM[0][mine], normalizer=9.0).loss
        total["policy"] += torch.autograd.grad(loss, weight)[0]
    weight = x.weight.clone().requires_grad_()
    (whole,) = torch.autograd.grad(fused_logprobs(x.hidden, weight, x.targets).entropy.sum(), weight)
    for found in spawn(sharded_weights, world, tmp_path):
        torch.testing.assert_close(found["logprobs"], total["logprobs"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["policy"], total["policy"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["tensor_parallel"], whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["fsdp2"], total["policy"] / world, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "message, options",
    [
        ("vocab_start must be None without a vocab_group, got 3", {"vocab_start": 3}),
        ("impl must be 'auto', 'triton' or 'torch' with a vocab_group", {"vocab_group": object(), "impl": "reference"}),
        ("vocab_start must be >= 0, got -1", {"vocab_group": object(), "vocab_start": -1}),
    ],
)
def test_options_are_checked(message, options):
    x = head_inputs(4, 9, 4)
    with pytest.raises(ValueError, match=message):
        fused_logprobs(x.hidden, x.weight, x.targets, **options)

"""The path on the CPU's own kernel: what it keeps and copies, and how it lives with the rest of torch."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tests.attention.cases import Case, assert_close, assert_parity, random_tensors, with_gradients
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from longlora.attention import cpu, s2_attention, s2_attention_reference

CASE = Case(num_tokens=26, group_size=6, batch_size=2, num_heads=6, num_kv_heads=3, has_sinks=True)


def on_cpu(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None = None) -> Tensor:
    return s2_attention(query, key, value, group_size=6, sinks=sinks, backend="cpu")


@pytest.mark.parametrize("num_threads", [1, 64])
@pytest.mark.parametrize("part_tokens", [1, 7, 1000])
def test_parts_join_without_a_seam_however_they_are_divided(num_threads, part_tokens, monkeypatch, seed):
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    monkeypatch.setattr(cpu, "_FEWEST_TOKENS", part_tokens)
    case = Case(num_tokens=61, group_size=3, num_heads=6, num_kv_heads=3, borders=(20,), has_sinks=True, seed=seed)
    assert_parity(case, torch.float64, backend="cpu")


def test_a_part_is_a_segment_or_an_eighth_of_the_tokens_unless_threads_would_idle(monkeypatch):
    monkeypatch.setattr(cpu, "_FEWEST_TOKENS", 1)
    query = torch.empty(64, 4, 8)

    def sizes(group_size: int, num_threads: int, num_kv_heads: int = 4) -> list[int]:
        monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
        cuts = cpu.CutPoints(unshifted=(group_size,) * (64 // group_size), shifted=None)
        return [tokens.stop - tokens.start for _, _, tokens, _ in cpu._parts(query, query[:, :num_kv_heads], cuts)]

    assert sizes(16, num_threads=2) == [16] * 4
    assert sizes(2, num_threads=2) == [8] * 8
    assert sizes(2, num_threads=48) == [24, 24, 16]  # 48 threads for 4 heads of 12 segments
    assert sizes(16, num_threads=2, num_kv_heads=1) == [32, 32]  # of one key-value head each thread needs a segment


def test_keeps_its_inputs_its_output_and_a_number_for_each_query(seed):
    tensors = [tensor.requires_grad_() for tensor in random_tensors(replace(CASE, seed=seed))[:-1]]
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        output = on_cpu(*tensors)
    sizes = sorted(tensor.numel() for tensor in kept)
    query, key, value, sinks = tensors
    num_queries = query.numel() // query.shape[-1]
    expected = [query, key, value, sinks, output]
    assert sizes == sorted([num_queries, *(tensor.numel() for tensor in expected)])
    storages = {tensor.untyped_storage().data_ptr() for tensor in kept}
    assert {tensor.untyped_storage().data_ptr() for tensor in expected} <= storages


def test_an_upstream_gradient_of_any_strides_will_do(seed):
    *inputs, _ = random_tensors(Case(num_tokens=13, group_size=4, seed=seed))
    ones = torch.ones(1, dtype=torch.float64).expand(1, 4, 13, 8)  # as `.sum()` sends it
    transposed = torch.randn(1, 4, 8, 13, dtype=torch.float64).transpose(2, 3)
    for upstream in (ones, transposed):
        actual = with_gradients(on_cpu, [*inputs, upstream])
        expected = with_gradients(s2_attention_reference, [*inputs, upstream], group_size=6)
        assert_close(actual, expected, torch.float64, f"seed {seed}")


def test_inputs_that_want_no_gradient_get_none(seed):
    query, key, value, sinks, upstream = random_tensors(replace(CASE, seed=seed))
    key.requires_grad_()
    on_cpu(query, key, value, sinks).backward(upstream)
    assert query.grad is None and value.grad is None and sinks.grad is None
    torch.testing.assert_close(key.grad, with_gradients(on_cpu, random_tensors(replace(CASE, seed=seed)))[2])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_nothing(use_reentrant, seed):
    *inputs, upstream = random_tensors(replace(CASE, seed=seed))

    def checkpointed(*inputs: Tensor) -> Tensor:
        return checkpoint(on_cpu, *inputs, use_reentrant=use_reentrant)

    def gradients(attention) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        output = attention(*leaves)
        output.backward(upstream)
        return [output, *(tensor.grad for tensor in leaves)]

    for actual, wanted in zip(gradients(checkpointed), gradients(on_cpu), strict=True):
        assert torch.equal(actual, wanted)


def test_is_differentiable_by_functions(seed):
    *inputs, upstream = random_tensors(replace(CASE, seed=seed))
    wanted = with_gradients(on_cpu, [*inputs, upstream])[1:]
    actual = torch.func.grad(lambda inputs: (on_cpu(*inputs) * upstream).sum())(tuple(inputs))
    for got, expected in zip(actual, wanted, strict=True):
        torch.testing.assert_close(got, expected)


def test_refuses_a_second_derivative_and_the_explicit_path_has_it(seed):
    *inputs, upstream = random_tensors(replace(CASE, seed=seed))
    query, *others = (tensor.requires_grad_() for tensor in inputs)

    def second_derivative(attention) -> Tensor:
        (first,) = torch.autograd.grad(attention(query, *others), query, upstream, create_graph=True)
        return torch.autograd.grad(first.square().sum(), query)[0]

    with pytest.raises(RuntimeError, match="is not implemented"):
        second_derivative(on_cpu)

    def explicit(query, key, value, sinks):
        return s2_attention(query, key, value, group_size=6, sinks=sinks, backend="explicit")

    def definition(query, key, value, sinks):
        return s2_attention_reference(query, key, value, group_size=6, sinks=sinks)

    torch.testing.assert_close(second_derivative(explicit), second_derivative(definition))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's, of its own code
def test_refuses_forward_mode_differentiation(seed):
    query, key, value, *_ = random_tensors(replace(CASE, seed=seed))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode AD"):
        on_cpu(forward_ad.make_dual(query, torch.ones_like(query)), key, value)


def test_without_the_kernel_auto_takes_the_public_function(monkeypatch, seed):
    monkeypatch.setattr(cpu, "_forward", None)
    case = Case(num_tokens=13, group_size=4, seed=seed)
    assert_parity(case, torch.float64)
    with pytest.raises(Exception, match=r"needs a kernel that torch .* does not have"):
        assert_parity(case, torch.float64, backend="cpu")


COMPILED = """
import torch
from longlora.attention import s2_attention, s2_attention_reference
torch.manual_seed({seed})
leaves = [torch.randn(1, heads, 26, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
def results(attention, **settings):
    output = attention(*leaves, group_size=6, **settings)
    return [output, *torch.autograd.grad(output.sin().sum(), leaves)]
compiled = torch.compile(s2_attention, fullgraph=True, backend="aot_eager")
for actual, expected in zip(results(compiled, backend="{backend}"), results(s2_attention_reference), strict=True):
    torch.testing.assert_close(actual, expected)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "sdpa", "explicit"])
def test_is_one_graph_for_the_compiler(backend, seed):
    """In a process of its own: the tests' checks of shapes are nothing that the compiler could trace."""
    script = COMPILED.format(seed=seed, backend=backend)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""How the backends live with the rest of torch: autograd, checkpointing, functions and the compiler."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tests.attention.cases import Case, assert_close, random_tensors, with_gradients
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longlora.attention import s2_attention, s2_attention_reference

CASE = Case(num_tokens=26, group_size=6, batch_size=2, num_heads=6, num_kv_heads=3)


def by_sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return s2_attention(query, key, value, group_size=6, backend="sdpa")


def test_an_upstream_gradient_of_any_strides_will_do(seed):
    *inputs, _ = random_tensors(Case(num_tokens=13, group_size=4, seed=seed))
    ones = torch.ones(1, dtype=torch.float64).expand(1, 4, 13, 8)  # as `.sum()` sends it
    transposed = torch.randn(1, 4, 8, 13, dtype=torch.float64).transpose(2, 3)
    for upstream in (ones, transposed):
        actual = with_gradients(by_sdpa, [*inputs, upstream])
        expected = with_gradients(s2_attention_reference, [*inputs, upstream], group_size=6)
        assert_close(actual, expected, torch.float64, f"seed {seed}")


def test_inputs_that_want_no_gradient_get_none(seed):
    query, key, value, upstream = random_tensors(replace(CASE, seed=seed))
    key.requires_grad_()
    by_sdpa(query, key, value).backward(upstream)
    assert query.grad is None and value.grad is None
    torch.testing.assert_close(key.grad, with_gradients(by_sdpa, random_tensors(replace(CASE, seed=seed)))[2])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_nothing(use_reentrant, seed):
    *inputs, upstream = random_tensors(replace(CASE, seed=seed))

    def checkpointed(*inputs: Tensor) -> Tensor:
        return checkpoint(by_sdpa, *inputs, use_reentrant=use_reentrant)

    def gradients(attention) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        output = attention(*leaves)
        output.backward(upstream)
        return [output, *(tensor.grad for tensor in leaves)]

    for actual, wanted in zip(gradients(checkpointed), gradients(by_sdpa), strict=True):
        assert torch.equal(actual, wanted)


def test_is_differentiable_by_functions(seed):
    *inputs, upstream = random_tensors(replace(CASE, seed=seed))
    wanted = with_gradients(by_sdpa, [*inputs, upstream])[1:]
    actual = torch.func.grad(lambda inputs: (by_sdpa(*inputs) * upstream).sum())(tuple(inputs))
    for got, expected in zip(actual, wanted, strict=True):
        torch.testing.assert_close(got, expected)


def test_the_explicit_path_has_a_second_derivative(seed):
    *inputs, upstream = random_tensors(replace(CASE, has_sinks=True, seed=seed))
    query, *others = (tensor.requires_grad_() for tensor in inputs)

    def second_derivative(attention) -> Tensor:
        (first,) = torch.autograd.grad(attention(query, *others), query, upstream, create_graph=True)
        return torch.autograd.grad(first.square().sum(), query)[0]

    def explicit(query, key, value, sinks):
        return s2_attention(query, key, value, group_size=6, sinks=sinks, backend="explicit")

    def definition(query, key, value, sinks):
        return s2_attention_reference(query, key, value, group_size=6, sinks=sinks)

    torch.testing.assert_close(second_derivative(explicit), second_derivative(definition))


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
@pytest.mark.parametrize("backend", ["sdpa", "explicit"])
def test_is_one_graph_for_the_compiler(backend, seed):
    """In a process of its own: the tests' checks of shapes are nothing that the compiler could trace."""
    script = COMPILED.format(seed=seed, backend=backend)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

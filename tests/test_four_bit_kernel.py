"""The choice of bitsandbytes' processor kernel holds for all tests, and its formula is what it computes."""

import os

import pytest
import torch
from tests.conftest import KERNEL_VARIABLE
from tests.four_bit_kernel import choose_avx512_bf16, multiply_by_formula

bitsandbytes = pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("has_kernel", [False, True])
def test_layers_are_packed_as_chosen(monkeypatch: pytest.MonkeyPatch, has_kernel: bool) -> None:
    monkeypatch.setattr(bitsandbytes.functional, "has_avx512bf16", lambda: False)  # as on other processors
    choose_avx512_bf16(monkeypatch, has_kernel)
    assert (bitsandbytes.functional.gemv_4bit is multiply_by_formula) is has_kernel
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(128, 32, bias=False, quant_type="nf4", compute_dtype=torch.float32).to("cpu")
    states = torch.randn(3, 128)
    with torch.no_grad():
        before = layer.train()(states)
        after = layer.eval()(states)
    assert getattr(layer.weight.quant_state, "packing_format_for_cpu", False) is has_kernel
    # Packed, the scales of blocks are rounded to bfloat16; the results are about 0.6.
    torch.testing.assert_close(after, before, atol=0.01 if has_kernel else 0, rtol=0)


@pytest.mark.skipif(not os.environ.get(KERNEL_VARIABLE), reason=f"{KERNEL_VARIABLE} is not set")
def test_the_variable_decides_for_all_tests() -> None:
    assert bitsandbytes.nn.modules.has_avx512bf16() is (os.environ[KERNEL_VARIABLE] == "1")

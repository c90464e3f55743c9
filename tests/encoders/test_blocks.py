"""The fast blocks against open_clip's own, piece by piece."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import nn

from vlmad_lib.encoders import vit_blocks
from vlmad_lib.encoders.vit_blocks import Block, Linear, attend

KINDS = {
    "gelu": {},
    "quickgelu": {"act_layer": QuickGELU},
    "tanh gelu": {"act_layer": lambda: nn.GELU(approximate="tanh")},
    "another activation": {"act_layer": nn.ReLU},
    "layer scale": {"ls_init_value": 0.3},
}


def made(**kind) -> ResidualAttentionBlock:
    torch.manual_seed(0)
    block = ResidualAttentionBlock(64, 4, **kind).eval().requires_grad_(False)
    for value in block.parameters():  # layer norms, biases and scales start out as ones and zeros
        value.add_(0.2 * torch.randn_like(value))
    return block


@pytest.fixture(params=["AVX512", "AVX2"])
def capability(request, monkeypatch):
    """Blocks choose their linears as on a CPU with these instructions."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("length", [5, 80])
def test_a_block_is_open_clips(kind, packed, length, capability):
    plain, tokens = made(**KINDS[kind]), torch.randn(3, length, 64, generator=torch.Generator().manual_seed(1))
    fast = Block(plain, packed=packed)
    assert fast.inside.packed == (packed and capability == "AVX512" and vit_blocks.works(torch.float32))
    with torch.inference_mode():
        wanted = plain(tokens)
        torch.testing.assert_close(fast(tokens), wanted, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(fast(tokens, fast.project(tokens)), wanted, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(fast.class_token(tokens), wanted[:, 0], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_bf16_is_near_and_stays_fp32_outside(packed):
    plain, tokens = made(), torch.randn(3, 80, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, wanted = Block(plain, torch.bfloat16, packed)(tokens), plain(tokens)
    assert found.dtype == torch.float32
    apart = (found - wanted).abs().max() / wanted.abs().max()
    assert 1e-6 < apart < 0.02  # it is bf16, and nothing else


@pytest.mark.parametrize("length", [3, vit_blocks.FEW, vit_blocks.FEW + 1, 300])
@pytest.mark.parametrize("asking", [1, None])
def test_attention_is_the_fused_kernels(length, asking):
    query, key, value = torch.randn(3, 2, 4, length, 16, generator=torch.Generator().manual_seed(2))
    query = query[:, :, :asking]
    wanted = F.scaled_dot_product_attention(query.double(), key.double(), value.double()).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attend(query, key, value).double(), wanted, atol=2e-6, rtol=1e-5)
    halves = attend(query.bfloat16(), key.bfloat16(), value.bfloat16())
    assert (halves.double() - wanted).abs().max() < 0.03


def test_parts_without_packing_can_be_trained():
    block = made().requires_grad_(True)
    fast = Block(block, packed=False)
    fast(torch.randn(2, 5, 64)).sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in block.mlp.parameters())
    assert block.attn.in_proj_weight.grad.abs().sum() > 0


@pytest.fixture
def fresh():
    vit_blocks.works.cache_clear()
    yield
    vit_blocks.works.cache_clear()


def test_without_the_private_operators_plain_linears_serve(fresh, capability, monkeypatch):
    def gone(self, *_, **__):
        raise AttributeError("no such operator")

    plain, tokens = made(), torch.randn(3, 5, 64)
    monkeypatch.setattr(Linear, "__init__", _unless_packed(Linear.__init__, gone))
    assert not vit_blocks.works(torch.float32)
    fast = Block(plain)
    assert not fast.inside.packed
    with torch.inference_mode():
        torch.testing.assert_close(fast(tokens), plain(tokens), atol=2e-5, rtol=1e-5)


def test_private_operators_that_calculate_wrongly_are_left_alone(fresh, monkeypatch):
    call = Linear.__call__
    monkeypatch.setattr(Linear, "__call__", lambda self, x, *rest, **more: call(self, x, *rest, **more) + self.packed)
    assert not vit_blocks.works(torch.float32)


def _unless_packed(make, gone):
    def init(self, weight, bias, dtype=torch.float32, packed=True):
        (gone if packed else make)(self, weight, bias, dtype, packed)

    return init

"""Attention over packed tokens, against a softmax written out."""

import pytest
import torch

from neurovfm_core.errors import UsageError
from neurovfm_core.models.attention import BACKEND_VARIABLE, Packing, attend, available_backends, use_backend

LENGTHS = (5, 1, 12, 7)


@pytest.fixture(autouse=True)
def one_thread_and_the_automatic_backend(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)
    use_backend(None)
    yield
    use_backend(None)


def random_qkv(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    shape = (sum(LENGTHS), 3, 8)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def block_diagonal_softmax(q, k, v):
    """Attend over all packed tokens at once, with other volumes masked out."""
    volume = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    scores = torch.einsum("nhk,mhk->hnm", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(volume[:, None] != volume[None, :], float("-inf"))
    return torch.einsum("hnm,mhk->nhk", scores.softmax(-1), v)


@pytest.mark.parametrize("backend", available_backends("cpu", torch.float32))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_every_backend_equals_a_block_diagonal_softmax_forward_and_backward(backend, dtype, tolerance):
    use_backend(backend)
    ours, theirs = random_qkv(dtype), [x.detach().float().requires_grad_() for x in random_qkv(dtype)]
    weight = torch.linspace(-1, 1, 8)
    out = attend(*ours, LENGTHS)
    expected = block_diagonal_softmax(*theirs)
    (out.float() * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad.float(), b.grad, atol=tolerance, rtol=tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the fused kernels need a GPU")
def test_every_gpu_backend_equals_the_loop_over_sequences():
    q, k, v = (x.detach().cuda() for x in random_qkv(torch.bfloat16))
    use_backend("sdpa")
    expected = attend(q, k, v, LENGTHS)
    for backend in available_backends("cuda", torch.bfloat16):
        use_backend(backend)
        torch.testing.assert_close(attend(q, k, v, LENGTHS), expected, atol=1e-2, rtol=1e-2)


def test_lengths_may_be_a_list_a_tensor_or_a_packing_and_hold_empty_sequences():
    q, k, v = random_qkv()
    expected = attend(q, k, v, LENGTHS)
    with_empty = [0, 5, 1, 0, 12, 7, 0]
    for lengths in (with_empty, torch.tensor(with_empty), Packing.of(with_empty)):
        assert torch.equal(attend(q, k, v, lengths), expected)


def test_no_tokens_at_all_give_no_output():
    nothing = torch.zeros(0, 3, 8)
    assert attend(nothing, nothing, nothing, []).shape == (0, 3, 8)


def test_lengths_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="25"):
        attend(*random_qkv(), [5, 5])


def test_boundaries_are_cumulative_lengths_from_zero():
    boundaries = Packing.of(LENGTHS).boundaries(torch.device("cpu"))
    assert boundaries.tolist() == [0, 5, 6, 18, 25]
    assert boundaries.dtype == torch.int32


def test_a_backend_that_cannot_run_here_is_refused_by_name(monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, "flash-attn")
    with pytest.raises(UsageError, match="flash-attn"):
        attend(*random_qkv(), LENGTHS)

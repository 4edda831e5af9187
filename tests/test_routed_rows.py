"""Rows move from tokens to experts and back as plain indexing does, and so do their gradients."""

import pytest
import torch

from finetune.adapters.routed_rows import combine, row_order, spread


def order_of(expert_TK):
    return row_order(torch.sort(expert_TK.reshape(-1)).indices, expert_TK.shape[1])


def test_two_tokens_of_two_experts_by_hand():
    # Token 0 goes to experts 2 and 0, token 1 to 1 and 2: sorted by expert 0: t0, 1: t1, 2: t0, 2: t1.
    order = order_of(torch.tensor([[2, 0], [1, 2]]))
    assert order.token_S.tolist() == [0, 1, 0, 1]
    rows = spread(torch.tensor([[1.0], [10.0]]), order)
    assert rows.flatten().tolist() == [1, 10, 1, 10]
    out = torch.tensor([[3.0], [5.0], [7.0], [11.0]])  # of experts 0, 1, 2, 2
    weight = torch.tensor([[0.5, 2.0], [1.0, 10.0]])
    assert combine(out, weight, order).flatten().tolist() == [0.5 * 7 + 2 * 3, 1 * 5 + 10 * 11]


@pytest.mark.parametrize("top_k", [1, 3])
def test_gradients_are_the_numerical_ones(top_k):
    torch.manual_seed(0)
    order = order_of(torch.stack([torch.randperm(5)[:top_k] for _ in range(6)]))
    hidden = torch.randn(6, 4, dtype=torch.double, requires_grad=True)
    weight = torch.rand(6, top_k, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h, w: combine(spread(h, order).sin(), w, order), (hidden, weight))


def test_bfloat16_rows_are_added_up_in_the_weights_float32_and_a_frozen_weight_gets_no_gradient():
    order = order_of(torch.tensor([[0, 1], [1, 0]]))
    out = torch.tensor([[1.0], [2.0], [256.0], [512.0]], dtype=torch.bfloat16, requires_grad=True)
    found = combine(out, torch.ones(2, 2), order)
    assert found.dtype == torch.float32 and found.flatten().tolist() == [257.0, 514.0]  # 257 is no bfloat16
    found.sum().backward()
    assert out.grad is not None and out.grad.dtype == torch.bfloat16 and bool((out.grad == 1).all())


def test_bfloat16_weights_do_not_narrow_float32_rows_and_get_a_bfloat16_gradient():
    order = order_of(torch.tensor([[0, 1], [1, 0]]))
    weight = torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True)
    found = combine(torch.tensor([[1.0], [2.0], [256.0], [512.0]]), weight, order)
    assert found.dtype == torch.float32 and found.flatten().tolist() == [257.0, 514.0]
    found.sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16
    assert weight.grad.tolist() == [[1.0, 256.0], [512.0, 2.0]]

"""Cross-entropy over a large vocabulary, some predictions at a time, so that the logits are never whole.

Reads and writes nothing. Families cap their logits, scale them or cut the vocabulary: that is left to
their own code. The model's forward runs for each chunk, with the chunk's hidden states in place of its
decoder.
Axes: B rows, T tokens, N predictions, C of them in a chunk, D width, V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from data_recipes.artefact import UserError
from finetune.replaced_forwards import forwards_replaced

# Of float32. Whole logits up to the first of these: the last bits of a loss are then those of a model called
# in the plain way. A backward needs three times a chunk.
WHOLE_LOGITS_BYTES = 2**29
CHUNK_LOGITS_BYTES = 2**27

WAY_OUT = "set train.memory.loss_chunk_tokens=whole"


def chunk_length(model: Any, setting: str | int, n_positions: int) -> int | None:
    """Predictions whose logits are made at one time; None is all logits, of every position, at once."""
    if isinstance(setting, int):
        return setting
    n_bytes = torch.float32.itemsize * model.config.get_text_config().vocab_size
    if setting == "whole" or n_positions * n_bytes <= WHOLE_LOGITS_BYTES:
        return None
    return max(1, CHUNK_LOGITS_BYTES // n_bytes)


def chunked_losses(
    model: Any,
    inputs: Mapping[str, Any],
    is_trained_BT: torch.Tensor,
    targets_N: torch.Tensor,
    n_chunk: int,
) -> torch.Tensor:
    """Cross-entropy in nats [N], float32, of the predictions made where `is_trained_BT` holds.

    `inputs` are the arguments of the model's forward. `is_trained_BT` has one position less than these: the
    last predicts nothing.

    Raises:
        UserError: the model's head is trained, or its logits are not made from its decoder's hidden states.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of a PeftModel
    head, decoder = inner.get_output_embeddings(), inner.base_model
    if head is None or decoder is inner:
        raise _refused(inner, "it has no decoder with a head behind it")
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in head.parameters()):
        raise _refused(inner, "its head is trained, and chunks give the head no gradient")
    hidden_BTD, kind = _hidden_states(model, decoder, inputs)
    hidden_ND = hidden_BTD[:, :-1][is_trained_BT]

    def logits_of(hidden_CD: torch.Tensor) -> torch.Tensor:
        output = kind(last_hidden_state=hidden_CD.unsqueeze(0))
        with forwards_replaced({decoder: lambda *_, **__: output}):
            return model(**inputs).logits[0]

    return _ChunkedLosses.apply(hidden_ND, targets_N, n_chunk, logits_of)  # type: ignore[return-value]


def _hidden_states(model: Any, decoder: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, type]:
    """What the decoder hands to the head, [B, T, D], and the class it comes in; one token is let through."""
    run, kept = decoder.forward, []

    def keep(*arguments: Any, **named: Any) -> Any:
        output = run(*arguments, **named)
        hidden_BTD = getattr(output, "last_hidden_state", None)
        if not torch.is_tensor(hidden_BTD):
            raise _refused(decoder, f"its decoder returns {type(output).__name__}, without last_hidden_state")
        kept.append((hidden_BTD, type(output)))
        output.last_hidden_state = hidden_BTD[:1, :1]
        return output

    # The whole forward and not the decoder alone: it may hand over more than it was given.
    with forwards_replaced({decoder: keep}):
        logits = model(**inputs).logits
    if len(kept) != 1 or logits.shape[:2] != (1, 1):
        raise _refused(decoder, f"it made logits {tuple(logits.shape)} of one hidden state")
    return kept[0]


class _ChunkedLosses(torch.autograd.Function):
    """Losses, and with them the gradient of each by its own hidden state: nothing is computed twice.

    A prediction's loss depends on its own hidden state alone. So what is kept for the backward is [N, D], and
    the gradient that comes in only scales its rows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        targets_N: torch.Tensor,
        n_chunk: int,
        logits_of: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        learns = ctx.needs_input_grad[0]
        losses_N = torch.empty(len(hidden_ND), dtype=torch.float32, device=hidden_ND.device)
        grad_ND = torch.empty_like(hidden_ND) if learns else None
        for start in range(0, len(hidden_ND), n_chunk):
            part = slice(start, start + n_chunk)
            with torch.set_grad_enabled(learns):
                hidden_CD = hidden_ND[part].detach().requires_grad_(learns)
                losses_C = F.cross_entropy(logits_of(hidden_CD).float(), targets_N[part], reduction="none")
                if grad_ND is not None:
                    (grad_ND[part],) = torch.autograd.grad(losses_C.sum(), hidden_CD)
            losses_N[part] = losses_C.detach()
        ctx.save_for_backward(grad_ND)
        return losses_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (grad_ND,) = ctx.saved_tensors
        return (grads[0].unsqueeze(-1) * grad_ND).to(grad_ND.dtype), None, None, None


def _refused(model: Any, reason: str) -> UserError:
    return UserError(f"{model.config.model_type}: its loss cannot be made in chunks: {reason}; {WAY_OUT}")

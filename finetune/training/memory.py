"""Make a model ready to be trained in less memory. Reads and writes nothing."""

from typing import Any

from data_recipes.artefact import UserError
from finetune.training.frozen_prefix import WAY_OUT, PrefixCache
from finetune.training_options import MemoryConfig


def prepare_memory(model: Any, config: MemoryConfig, in_step: bool = False) -> PrefixCache | None:
    """Let `model` checkpoint its layers or not; returns the cache of its frozen layers when one is asked for.

    `in_step` is that of the layout: processes that share the base's weights run its layers together, whatever
    rows they keep.

    Raises:
        UserError: the model's family cannot recompute its activations, or its base is cut over processes.
    """
    if config.gradient_checkpointing:
        try:
            model.activation_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise UserError(f"set train.memory.gradient_checkpointing=false: {error}") from error
        # For a frozen embedding transformers makes its output ask for a gradient. This kind of checkpointing
        # does without, and the layers below the first adapter would get a graph and be computed twice.
        model.disable_input_require_grads()
    elif model.is_activation_checkpointing:
        model.activation_checkpointing_disable()
    if config.prefix_cache == "none":
        return None
    if in_step:
        raise UserError(
            "train.memory.prefix_cache: the base is cut over the processes, so none of them can leave out "
            f"layers for rows it has seen while others run them; {WAY_OUT}"
        )
    return PrefixCache(model, config)

"""What a checkpoint calls the parameters of a model, by transformers' own conversion table; "*" is an expert.

Reads a model, whose weights may be on the meta device; writes nothing. In memory all experts of a projection
are one parameter; most checkpoints have one tensor for each expert, and vLLM and SGLang use those names.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightTransform

from data_recipes.artefact import UserError
from finetune.config import BaseConfig
from finetune.model import auto_class, resolve_model_path


class StoredAs(NamedTuple):
    """How a checkpoint stores one parameter.

    Several `names` share its outputs, in this order; `operations` are transformers', in the order of loading.
    """

    names: list[str]
    operations: list[str]

    @property
    def is_per_expert(self) -> bool:
        """Whether each expert has tensors of its own."""
        return "*" in self.names[0]


def skeleton(base: BaseConfig) -> Any:
    """The base with its names and shapes but no weights (they are on the meta device).

    Raises:
        UserError: there is no such model, or its config cannot be read.
    """
    path = resolve_model_path(base.model)
    try:
        config = AutoConfig.from_pretrained(path, revision=base.revision)
        with torch.device("meta"):
            return auto_class(config).from_config(config, dtype=getattr(torch, base.dtype)).eval()
    except Exception as error:  # OSError, ValueError: each library has its own
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot read the config of the base {base.model!r}: {first_line}") from error


def conversion_table(model: Any) -> list[WeightTransform]:
    """Transformers' steps from a checkpoint of this family to the model, in their order."""
    return get_model_conversion_mapping(model, add_legacy=False)


def stored_as(table: Sequence[WeightTransform], parameter: str) -> StoredAs:
    """How checkpoints of the table's family store `parameter` (a name in the model)."""
    stored = StoredAs([parameter], [])
    for transform in table:
        if isinstance(transform, WeightConverter) and len(transform.target_patterns) == 1:
            target = transform.target_patterns[0]
            if parameter.endswith(target):
                before = parameter.removesuffix(target)
                operations = [type(operation).__name__ for operation in transform.operations]
                stored = StoredAs([before + name for name in transform.source_patterns], operations)
                break
    # Loading renames first and converts then; back is the other way round.
    for transform in reversed(table):
        if not isinstance(transform, WeightConverter):
            back = transform.reverse_transform()
            stored = stored._replace(names=[back.rename_source_key(name)[0] for name in stored.names])
    return stored


def model_type(model: nn.Module) -> str:
    """The family's name in transformers, such as glm_moe_dsa."""
    return str(getattr(model.config, "model_type", type(model).__name__))

"""Load the frozen base and its tokenizer, choose the device, and tell one model from another.

Reads a folder (safetensors only) or, when the network is allowed, a Hub repository; writes nothing.
The only file that may name a kind of accelerator.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from data_recipes.artefact import UserError, sha256_json
from finetune.config import SHIPPED_MODELS, BaseConfig

# Parts of a config that say how a model was loaded, not which model it is.
_LOADING_KEYS = (
    "_name_or_path", "dtype", "torch_dtype", "transformers_version", "_commit_hash", "use_cache",
    "distributed_config",
)  # fmt: skip
_WHAT_A_MODEL_IS = (
    "give a folder with config.json, *.safetensors and a tokenizer, a Hub id (owner/name; needs the network "
    "or a filled cache), or tiny-glm"
)
ALIGNMENT_BYTES = 64  # of what torch allocates on the CPU
_N_SAMPLED = 256  # values of a tensor that go into the fingerprint, evenly spread


def resolve_model_path(model: str) -> str:
    """Return the folder of a shipped model, or the name as it is (a folder or a Hub id)."""
    return str(SHIPPED_MODELS.get(model, model))


def choose_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is the machine's accelerator, else the CPU.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"base.device is {name!r}, and this machine has no such device ({error}): use auto or cpu"
        ) from error


def auto_class(config: Any) -> Any:
    """The auto class for a model of `config`: of causal language models, else of those that see images too.

    The second kind answers texts without any image as the first does. What neither knows is the first's,
    whose message names the families it knows.
    """
    is_image_text = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if is_image_text and config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def load_model(
    base: BaseConfig, placement: Mapping[str, Any] | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the base in evaluation mode with every parameter frozen, and its tokenizer.

    Weights are read from safetensors only and no code from the model's repository is run. `placement` are
    arguments of `from_pretrained` that say where the weights go; without any they go to `base.device`.

    Raises:
        UserError: there is no model of that name, or its files are missing or damaged.
    """
    path = resolve_model_path(base.model)
    if "/" not in path and not Path(path).is_dir():  # a Hub id names its owner
        nearest = get_close_matches(path, [*SHIPPED_MODELS], n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise UserError(f"there is no model {path!r}: {hint}{_WHAT_A_MODEL_IS}")
    shows_progress = is_progress_bar_enabled()
    if base.model in SHIPPED_MODELS or os.environ.get("LOCAL_RANK", "0") != "0":
        disable_progress_bar()  # it loads in a blink; a bar, of one process, helps with a large one
    try:
        tokenizer = load_tokenizer(base)
        config = AutoConfig.from_pretrained(path, revision=base.revision)
        loaded: Any = auto_class(config).from_pretrained(
            path,
            revision=base.revision,
            dtype=getattr(torch, base.dtype),
            use_safetensors=True,
            output_loading_info=True,
            **(placement or {}),
        )
        model, loading = loaded
        if missing := sorted(loading["missing_keys"]):  # transformers makes up random values for these
            raise ValueError(f"its files lack {len(missing)} tensor(s), first {missing[0]}")
    except Exception as error:  # OSError, ValueError, SafetensorError: each library has its own
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"cannot load the base model {base.model!r}: {first_line}\n{_WHAT_A_MODEL_IS}"
        ) from error
    finally:
        if shows_progress:
            enable_progress_bar()
    if not placement:
        model = model.to(device=choose_device(base.device))
    _align(model)
    return model.eval().requires_grad_(False), tokenizer


def _align(model: torch.nn.Module) -> None:
    """Move each tensor to where torch itself would have put it.

    Those from safetensors lie where Python put their bytes, and the last bits of a matrix product depend on
    the alignment of its operands: one model would give two results, by the luck of its loading.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        # A share of a tensor is gathered, or sliced, into new memory by each forward.
        if not isinstance(tensor, DTensor) and tensor.data_ptr() % ALIGNMENT_BYTES:
            tensor.data = tensor.data.clone()


def load_tokenizer(base: BaseConfig) -> PreTrainedTokenizerBase:
    """Load the base's tokenizer; `base.thinking` is written into its chat template.

    There all that renders a chat finds it, training and asking alike, and so does the fingerprint.

    Raises:
        UserError: there is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model_path(base.model), revision=base.revision)
    except Exception as error:  # OSError, ValueError: each library has its own
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot load the tokenizer of {base.model!r}: {first_line}\n{_WHAT_A_MODEL_IS}"
        ) from error
    if base.thinking is not None and tokenizer.chat_template:
        # The plus keeps a line end that the template may start with.
        setting = f"{{% set enable_thinking = {str(base.thinking).lower()} +%}}"
        tokenizer.chat_template = setting + tokenizer.chat_template
    return tokenizer


def model_fingerprint(model: PreTrainedModel) -> str:
    """Return a SHA-256 over config, names, shapes and sampled values of the base's parameters and buffers.

    Adapters attached to the model, the device, the layout over processes and the experts implementation do
    not change it. Values are compared in float32, so a bfloat16 checkpoint has one fingerprint in either
    dtype. Of a base that is shared out, every process must ask: each has a part of the values.
    """
    tensors = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in model.state_dict().items()
        if "expert_lora." not in name and ".lora_" not in name
    }
    shared_out = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
    samples = {name: sampled_bytes(tensor) for name, tensor in tensors.items() if name not in shared_out}
    return fingerprint_of(model.config, samples | _samples_of_all(shared_out) | _samples_of_zero3(model))


def _samples_of_all(tensors: Mapping[str, DTensor]) -> dict[str, bytes]:
    """What tensors shared out over all processes add to the fingerprint, in one exchange of the samples."""
    if not tensors:
        return {}
    parts = [_own_sample(tensor) for tensor in tensors.values()]
    flat = torch.cat(parts)
    torch.distributed.all_reduce(flat, torch.distributed.ReduceOp.MAX)
    found = zip(tensors.items(), flat.split([len(part) for part in parts]), strict=True)
    return {name: sample_bytes(tensor.shape, sample) for (name, tensor), sample in found}


def _samples_of_zero3(model: PreTrainedModel) -> dict[str, bytes]:
    """What tensors that DeepSpeed shared out add to the fingerprint, gathered one by one."""
    samples = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if hasattr(parameter, "ds_id"):
            from deepspeed import zero  # pyright: ignore[reportMissingImports]

            with zero.GatheredParameters([parameter]):
                samples[name.replace(".base_layer", "")] = sampled_bytes(parameter)
    return samples


def _own_sample(tensor: DTensor) -> torch.Tensor:
    """The values at `sampled_positions` that this process has, and -inf for all others."""
    shape, first = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    # Shards are of the first axis: a share is a run of the tensor laid flat.
    assert all(own == whole for own, whole in zip(shape[1:], tensor.shape[1:], strict=True))
    positions = torch.tensor(sampled_positions(tensor.numel()), device=tensor.device)
    local = tensor.to_local().detach().flatten()
    index = positions - (first[0] * math.prod(shape[1:]) if len(local) else 0)
    is_own = (index >= 0) & (index < len(local))
    sample = torch.full((len(positions),), -math.inf, device=tensor.device)
    sample[is_own] = local[index[is_own]].float()
    return sample


def sampled_positions(n_values: int) -> range:
    """The places in a tensor of `n_values`, laid flat, whose values go into the fingerprint."""
    return range(0, n_values, max(1, n_values // _N_SAMPLED))


def sampled_bytes(tensor: torch.Tensor) -> bytes:
    """What a tensor adds to the fingerprint: its shape and evenly spread values."""
    flat = tensor.detach().flatten()
    return sample_bytes(tensor.shape, flat[:: sampled_positions(len(flat)).step])


def sample_bytes(shape: torch.Size, sample: torch.Tensor) -> bytes:
    """The same from the values at `sampled_positions` alone."""
    return f"{tuple(shape)}".encode() + sample.to("cpu", torch.float32).numpy().tobytes()


def fingerprint_of(config: Any, samples: Mapping[str, bytes]) -> str:
    """The fingerprint of a model by its config and the `sampled_bytes` of each tensor of its state dict."""
    identity = {key: value for key, value in config.to_dict().items() if key not in _LOADING_KEYS}
    # A config may hold infinity, which is no JSON.
    plain = json.loads(json.dumps(identity, default=str), parse_constant=str)
    digest = hashlib.sha256(sha256_json(plain).encode())
    for name in sorted(samples):
        digest.update(f"{name} ".encode() + samples[name])
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a SHA-256 over vocabulary, merges, special tokens and chat template."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    # Not all of it: padding and truncation are kept there too, and every call may change them.
    pipeline = json.loads(backend.to_str()) if backend is not None else {}
    parts: dict[str, Any] = {
        "vocabulary": tokenizer.get_vocab(),
        "pipeline": {key: pipeline.get(key) for key in ("normalizer", "pre_tokenizer", "model")},
        "special": {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
        "template": str(tokenizer.chat_template),
    }
    return sha256_json(parts)

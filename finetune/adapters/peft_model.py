"""The same adapter as a PeftModel: `save_pretrained`, `from_pretrained`, `disable_adapter`, `set_adapter`.

    model = get_expert_peft_model(base, plan, LoraConfig(rank=8), seed=0)   # train it with any loop
    model.save_pretrained(folder)
    model = PeftModel.from_pretrained(base, folder)                         # after importing this module

Importing this module makes "EXPERT_LORA" known to PEFT as a type of its own, as "LORA" is one. It stands in
the saved adapter_config.json, and PEFT rewrites targets and tensors of the type "LORA" only. The layer is
`ExpertLora` of lora.py, the forward the one after `attach` of adapter.py. The files are PEFT's.
"""

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import peft
import peft.mapping
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from data_recipes.artefact import UserError
from finetune.adapters.adapter import change_implementation, chosen_experts, count_line
from finetune.adapters.adapter_folder import PEFT_TYPE
from finetune.adapters.linear_lora import has_adapter, linear_layers, linear_names, start_linear
from finetune.adapters.lora import ExpertLora, former_implementation, implementation_over
from finetune.adapters.merge import (
    check_mergeable,
    keep_weight,
    merge_experts,
    put_back_weight,
    unmerge_experts,
)
from finetune.config import LoraConfig
from finetune.model import model_fingerprint
from finetune.moe import moe_layers
from finetune.processes import say

TESTED_PEFT = "0.21.2"
# What this module takes from inside PEFT, and PEFT promises to nobody.
MAPPINGS = ("PEFT_TYPE_TO_CONFIG_MAPPING", "PEFT_TYPE_TO_TUNER_MAPPING", "PEFT_TYPE_TO_PREFIX_MAPPING")
TUNER_METHODS = (
    "_create_and_replace",
    "_enable_adapter_layers",
    "_prepare_model",
    "_remove_adapter_name_from_key",
    "_unload_and_optionally_merge",
    "inject_adapter",
    "merge_adapter",
    "set_adapter",
    "unmerge_adapter",
)
LAYER_METHODS = ("delete_adapter", "enable_adapters", "set_adapter")
# PEFT's options that an adapter of this type may set; others would act on linear layers and not on experts.
OPTIONS = {"r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules"}
NO_OPTIONS = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
}


@dataclass
class ExpertLoraConfig(PeftLoraConfig):
    """PEFT's LoRA options and the chosen experts; `expert_lora_config` makes it."""

    experts: dict[str, list[int]] = field(default_factory=dict)  # name of an experts module -> expert ids
    down_rank: int | None = None
    down_alpha: float | None = None
    attention: bool = False  # says why there are other targets than experts
    shared_experts: bool = False
    seed: int = 0  # of the start
    model_fingerprint: str | None = None  # of the base; None fits any

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type: Any = PEFT_TYPE
        for option in fields(PeftLoraConfig):
            default = option.default if option.default_factory is MISSING else option.default_factory()
            if option.name in OPTIONS | NO_OPTIONS or getattr(self, option.name) == default:
                continue
            raise UserError(f"PEFT's option {option.name} is not supported on chosen experts: leave it out")

    def to_dict(self) -> dict[str, Any]:
        """As PEFT's, with the targets in order: the same adapter gives the same file."""
        return {**super().to_dict(), "target_modules": sorted(self.target_modules or ())}

    @property
    def options(self) -> LoraConfig:
        """The options in our own words."""
        return LoraConfig(
            rank=self.r,
            alpha=self.lora_alpha,
            down_rank=self.down_rank,
            down_alpha=self.down_alpha,
            rslora=self.use_rslora,
            dropout=self.lora_dropout,
            attention=self.attention,
            shared_experts=self.shared_experts,
        )


def get_expert_peft_model(
    base: Any, plan: Mapping[str, Any], config: LoraConfig, seed: int, adapter_name: str = "default"
) -> PeftModel:
    """Wrap `base` with an adapter on the experts of `plan`; it starts as `attach` with this seed would.

    Raises:
        UserError: as `attach`, or the plan is for another model.
    """
    check_peft()
    model = get_peft_model(base, expert_lora_config(base, plan, config, seed), adapter_name)
    n_trainable, _ = model.get_nb_trainable_parameters()
    chosen = chosen_experts(moe_layers(base), plan, config)
    linears = [name for name, _ in linear_layers(base)]
    say(count_line(adapter_name, n_trainable, config, chosen, linears))
    return model


def expert_lora_config(base: Any, plan: Mapping[str, Any], config: LoraConfig, seed: int) -> ExpertLoraConfig:
    """PEFT's config of an adapter on the experts of `plan`, for `get_peft_model` and `PeftModel.add_adapter`.

    `base` is the model itself, or a PeftModel around it.

    Raises:
        UserError: nothing is chosen, a layer or expert does not exist, or the plan is for another model.
    """
    if isinstance(base, PeftModel):
        base = base.get_base_model()
    fingerprint = model_fingerprint(base)
    _require_base(plan.get("model_fingerprint"), fingerprint, "the plan")
    layers = moe_layers(base)
    chosen = chosen_experts(layers, plan, config)
    names = {id(module): name for name, module in base.named_modules()}
    experts = {names[id(layer.experts)]: chosen[layer.index] for layer in layers if layer.index in chosen}
    alpha: Any = config.alpha  # PEFT annotates an int and divides it
    return ExpertLoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        target_modules=[*experts, *linear_names(base, config)],
        experts=experts,
        down_rank=config.down_rank,
        down_alpha=config.down_alpha,
        attention=config.attention,
        shared_experts=config.shared_experts,
        seed=seed,
        model_fingerprint=fingerprint,
    )


class ExpertLoraLayer(nn.Module, BaseTunerLayer):
    """What PEFT sees of one experts module, whose child `peft` it is: its adapters by name.

    The experts find the active one as `expert_lora`, which is no child, so that each adapter has one name.
    """

    adapter_layer_names = ("expert_lora",)

    def __init__(self, experts: Any) -> None:
        super().__init__()
        self.expert_lora = nn.ModuleDict()
        self._held = (experts,)  # in a tuple, or it would become a child of its own child
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []

    def get_base_layer(self) -> Any:
        """The experts."""
        return self._held[0]

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Let one adapter compute, and train unless `inference_mode`; an empty list switches all off."""
        if not isinstance(adapter_names, str) and len(adapter_names) > 1:
            raise UserError(f"one adapter at a time can act on experts, not {', '.join(adapter_names)}")
        super().set_adapter(adapter_names, inference_mode)
        self._show_active()

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the active adapter on or off."""
        super().enable_adapters(enabled)
        self._show_active()

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter."""
        super().delete_adapter(adapter_name)
        self._show_active()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the experts' weights, always after the checks that `safe_merge` asks for."""
        for name in self.active_adapters if adapter_names is None else adapter_names:
            if name in self.expert_lora and name not in self.merged_adapters:
                check_mergeable(self.get_base_layer(), self._adapter(name))
                merge_experts(self.get_base_layer(), self._adapter(name))
                self.merged_adapters.append(name)
        self._show_active()

    def unmerge(self) -> None:
        """Put the experts' weights back bit for bit."""
        while self.merged_adapters:
            unmerge_experts(self.get_base_layer(), self._adapter(self.merged_adapters.pop()))
        self._show_active()

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        if adapter_name in self.expert_lora:
            own = next(self.get_base_layer().parameters(recurse=False))
            self.expert_lora[adapter_name].to(device or own.device)

    def _adapter(self, name: str) -> ExpertLora:
        adapter = self.expert_lora[name]
        assert isinstance(adapter, ExpertLora)
        return adapter

    def _show_active(self) -> None:
        """Let the experts' forward see the adapter that acts now, if any."""
        seen = self.get_base_layer().__dict__
        seen.pop("expert_lora", None)
        for name in self.active_adapters:
            if name in self.expert_lora and not self.disable_adapters and not self.merged:
                seen["expert_lora"] = self.expert_lora[name]


class ExpertLoraModel(LoraModel):
    """PEFT's LoRA tuner, which also knows experts: other targets are its own linear layers."""

    # PEFT skips the insides of an adapter by this: it must be in their names, and not in that of `peft`.
    prefix = "lora"
    tuner_layer_cls: Any = BaseTunerLayer

    def _prepare_model(self, peft_config: Any, model: Any) -> None:
        super()._prepare_model(peft_config, model)
        if peft_config.model_fingerprint is not None:
            _require_base(peft_config.model_fingerprint, model_fingerprint(model), "the adapter")
        change_implementation(model, implementation_over)

    def _create_and_replace(
        self,
        lora_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **others: Any,
    ) -> None:
        chosen = lora_config.experts.get(current_key)
        if chosen is None:
            super()._create_and_replace(
                lora_config, adapter_name, target, target_name, parent, current_key, **others
            )
            return
        if not hasattr(target, "peft"):
            target.add_module("peft", ExpertLoraLayer(target))
        target.peft.expert_lora[adapter_name] = ExpertLora(target, chosen, lora_config.options, adapter_name)

    def inject_adapter(self, model: Any, adapter_name: str, *arguments: Any, **options: Any) -> None:
        """As PEFT's; then the start, in the order that `attach` draws it in."""
        if any(adapter_name in name.split(".") for name, _ in model.named_modules()):
            # PEFT leaves out of a file what has another adapter's name anywhere in its own.
            raise UserError(
                f"a module of the model is called {adapter_name!r}: call the adapter something else"
            )
        super().inject_adapter(model, adapter_name, *arguments, **options)
        config: Any = self.peft_config[adapter_name]
        holders = [getattr(model.get_submodule(name), "peft", None) for name in config.experts]
        if not all(holder is not None and adapter_name in holder.expert_lora for holder in holders):
            raise UserError(_peft_changed("call of LoraModel._create_and_replace for the experts"))
        generator = torch.Generator().manual_seed(config.seed)
        for _, layer in linear_layers(model):
            if has_adapter(layer, adapter_name):
                start_linear(layer, adapter_name, generator)
        for layer in moe_layers(model):
            adapters: Any = getattr(getattr(layer.experts, "peft", None), "expert_lora", {})
            if adapter_name in adapters:
                adapters[adapter_name].start(generator)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """As PEFT's, with the linear layers' weights kept too, so that unmerging gives the same bits."""
        layers = [layer for _, layer in linear_layers(self.model) if not layer.merged]
        for layer in layers:
            keep_weight(layer)
        super().merge_adapter(adapter_names, safe_merge)
        for layer in layers:
            if not layer.merged:
                del layer.original_weight

    def unmerge_adapter(self) -> None:
        """Put all weights back bit for bit."""
        for layer in self.model.modules():
            if isinstance(layer, BaseTunerLayer) and layer.merged:
                layer.unmerge()
                if hasattr(layer, "original_weight"):
                    put_back_weight(layer)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """As PEFT's; what is merged is taken out first, bit for bit."""
        self.unmerge_adapter()
        super().set_adapter(adapter_name, inference_mode)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        if not enabled:
            self.unmerge_adapter()
        super()._enable_adapter_layers(enabled)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        for layer in [module for module in self.model.modules() if isinstance(module, ExpertLoraLayer)]:
            if merge:
                layer.merge(safe_merge, adapter_names)
            experts = layer.get_base_layer()
            experts.__dict__.pop("expert_lora", None)
            del experts.peft
        change_implementation(self.model, former_implementation)
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        of_experts = f".peft.expert_lora.{adapter_name}."
        if of_experts in key:
            return key.replace(of_experts, ".peft.expert_lora.")
        return super()._remove_adapter_name_from_key(key, adapter_name)


def check_peft() -> None:
    """Raise UserError when the installed PEFT lacks a part of its inside that this module is built on."""
    places = [(peft.mapping, MAPPINGS), (LoraModel, TUNER_METHODS), (BaseTunerLayer, LAYER_METHODS)]
    lacking = [
        f"{place.__name__}.{name}" for place, names in places for name in names if not hasattr(place, name)
    ]
    if not lacking and "current_key" not in inspect.signature(LoraModel._create_and_replace).parameters:
        lacking = ["current_key in LoraModel._create_and_replace"]
    if lacking:
        raise UserError(_peft_changed(", ".join(lacking)))


def register() -> None:
    """Make the type known to PEFT; `register_peft_method` takes only types that PEFT itself lists."""
    check_peft()
    values = (ExpertLoraConfig, ExpertLoraModel, ExpertLoraModel.prefix)
    for mapping, value in zip(MAPPINGS, values, strict=True):
        getattr(peft.mapping, mapping)[PEFT_TYPE] = value


def _peft_changed(what: str) -> str:
    return (
        f"PEFT {peft.__version__} has no {what}, which a PeftModel of chosen experts needs: it was tested "
        f"with PEFT {TESTED_PEFT}. Install peft=={TESTED_PEFT}, or use attach, save_adapter and load_adapter "
        "of finetune.adapters.adapter, which do without"
    )


def _require_base(expected: str | None, found: str, what: str) -> None:
    if expected is not None and expected != found:
        raise UserError(
            f"{what} is for another model (fingerprint {expected[:12]}, this one has {found[:12]}): "
            "load the base it was made for"
        )


register()

"""Train tiny-glm, the base model that ships: a real `glm_moe_dsa` of 12 M parameters, from scratch, on two
cores.

Reads the raw text and the instructions of `data_recipes.corpus`; writes a model folder (bf16 safetensors,
tokenizer, `manifest.json` with seed, data hash, versions and loss curve) that plain `AutoModelForCausalLM`
loads.
Command: `local-experts base --config configs/base/tiny_glm.yaml` (`make base` fetches the Kolibri wheel
first).
"""

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import GlmMoeDsaConfig, GlmMoeDsaForCausalLM, PreTrainedTokenizerFast

from data_recipes.artefact import UserError, whole_folder, write_artefact
from data_recipes.corpus import Document, instructions, raw_documents
from data_recipes.languages import LANGUAGES
from data_recipes.settings import load_settings, settings_dict
from finetune.batches import IGNORED_LABEL
from finetune.moe import MoeLayer, moe_layers
from finetune.tokenizer import END, train_tokenizer

_PLACES = ("output", "kolibri_wheel")  # say where, not what
# Axes: B sequences of a batch, T tokens.


@dataclass(frozen=True)
class TinyBaseConfig:
    """Everything that decides the bytes of the base model."""

    output: str
    kolibri_wheel: str  # path of the wheel that brings most of the running text
    seed: int = 0
    steps: int = 5000
    instruction_share: float = 0.8  # of the steps; the others see raw text
    instruction_rows: int = 48  # of a step; one row a sequence, padded
    sorted_steps: int = 4  # whose rows are drawn together and sorted by length: less padding
    remember_from: float = 0.2  # of the steps: names to remember come when copying is learnt
    remember_share: float = 0.6  # of the instruction rows from then on
    raw_sequences: int = 12  # of a step
    length_tokens: int = 128  # of a raw sequence
    running_share: float = 0.6  # of the raw sequences; the rest are lists of facts
    n_instructions: int = 100_000  # to generalise from; and half as many to remember
    n_facts_each: int = 1_000
    learning_rate: float = 2.5e-3
    warmup_steps: int = 200
    weight_decay: float = 0.05
    vocabulary_size: int = 8192
    hidden: int = 192
    layers: int = 6
    experts: int = 32
    experts_per_token: int = 4
    expert_width: int = 96
    initial_std: float = 0.06  # of all weights but the routers'; GLM's 0.02 is for a width of 6144
    router_std: float = 0.05  # spread of the router's weights at the start
    balance_rate: float = 0.001  # step of the router's correction bias, per optimizer step
    save_every: int = 1000  # steps; the unfinished model is kept beside the output, for watching


def model_config(config: TinyBaseConfig, vocabulary_size: int, end_id: int) -> GlmMoeDsaConfig:
    """Return GLM-5.2's architecture in small: MLA, DSA with IndexShare, sigmoid router, a shared expert."""
    return GlmMoeDsaConfig(
        vocab_size=vocabulary_size,
        hidden_size=config.hidden,
        intermediate_size=2 * config.hidden,
        moe_intermediate_size=config.expert_width,
        num_hidden_layers=config.layers,
        first_k_dense_replace=1,
        num_attention_heads=6,
        num_key_value_heads=6,
        n_routed_experts=config.experts,
        n_shared_experts=1,
        num_experts_per_tok=config.experts_per_token,
        routed_scaling_factor=2.5,
        q_lora_rank=128,
        kv_lora_rank=96,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=32,
        # The indexer runs under no_grad and is never trained. Its top-k is wider than any sequence this model
        # is made for, so that it never chooses; the pattern is full, shared, shared, full, ... as in GLM-5.2.
        index_topk=1024,
        index_n_heads=2,
        index_head_dim=32,
        indexer_types=["full" if i % 3 == 0 else "shared" for i in range(config.layers)],
        max_position_embeddings=1024,
        initializer_range=config.initial_std,
        # Neighbouring frequencies 1.5 apart, about as in GLM-5.2 (8e6 over 64 dimensions: 1.6).
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        # GLM-5.2 has two tables. One serves both ends here: a model this small learns to copy far sooner.
        tie_word_embeddings=True,
        eos_token_id=end_id,
        pad_token_id=end_id,
        bos_token_id=None,
    )


class Batch(NamedTuple):
    """Token ids and labels, each [B, T], and where a token stands rather than padding."""

    ids: torch.Tensor
    labels: torch.Tensor
    is_token: torch.Tensor


class InstructionRow(NamedTuple):
    """Token ids of question and answer, and the labels: the answer and its stop token alone."""

    ids: list[int]
    labels: list[int]


class Pools:
    """What the base is trained on: raw streams by language and kind, and instruction rows by kind."""

    def __init__(
        self,
        streams: dict[tuple[str, str], np.ndarray],
        rows: dict[str, list[InstructionRow]],
        config: TinyBaseConfig,
    ) -> None:
        self.streams = streams
        self.rows = rows
        self.config = config
        self.rng = np.random.default_rng(config.seed)
        self.waiting: list[list[InstructionRow]] = []  # the rows of coming steps

    def batch(self, step: int) -> Batch:
        """Return what a step is trained on: instructions, or raw text."""
        is_instruction = self.rng.random() < self.config.instruction_share
        return self.instruction_batch(step) if is_instruction else self.raw_batch()

    def instruction_batch(self, step: int) -> Batch:
        """Return rows alone in their sequences: packed, other rows' numbers hide the one to copy."""
        if not self.waiting:
            self.waiting = self._draw(step)
        rows = self.waiting.pop()
        ids, labels = (
            torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(part) for part in parts], batch_first=True, padding_value=padding
            )
            for parts, padding in zip(zip(*rows, strict=True), (0, IGNORED_LABEL), strict=True)
        )
        n_tokens = torch.tensor([len(row.ids) for row in rows])
        return Batch(ids, labels, torch.arange(ids.shape[1]) < n_tokens[:, None])

    def _draw(self, step: int) -> list[list[InstructionRow]]:
        """Return the rows of a few steps, each step's of about one length, the steps in random order."""
        share = self.config.remember_share if step >= self.config.remember_from * self.config.steps else 0.0
        n_rows, n_steps = self.config.instruction_rows, self.config.sorted_steps
        kinds = self.rng.choice(["generalise", "remember"], n_rows * n_steps, p=[1 - share, share])
        drawn = [self.rows[kind][self.rng.integers(0, len(self.rows[kind]))] for kind in kinds]
        drawn.sort(key=lambda row: len(row.ids))
        return [drawn[i * n_rows : (i + 1) * n_rows] for i in self.rng.permutation(n_steps)]

    def raw_batch(self) -> Batch:
        """Return cuts of the raw streams; every sequence is of one language and kind."""
        cuts = [self._cut() for _ in range(self.config.raw_sequences)]
        ids = torch.from_numpy(np.stack(cuts).astype(np.int64))
        return Batch(ids, ids, torch.ones_like(ids, dtype=torch.bool))

    def _cut(self) -> np.ndarray:
        kind = "running" if self.rng.random() < self.config.running_share else "facts"
        codes = [code for code in LANGUAGES if (code, kind) in self.streams]
        # Square root of the size: a language with little text is seen often, but not learnt by heart.
        sizes = np.sqrt([len(self.streams[code, kind]) for code in codes])
        stream = self.streams[codes[self.rng.choice(len(codes), p=sizes / sizes.sum())], kind]
        start = self.rng.integers(0, len(stream) - self.config.length_tokens)
        return stream[start : start + self.config.length_tokens]


def token_streams(
    documents: Sequence[Document], config: TinyBaseConfig, tokenizer: PreTrainedTokenizerFast
) -> dict[tuple[str, str], np.ndarray]:
    """Return one array of token ids a language and kind of raw text; held-out documents stay out."""
    pieces: dict[tuple[str, str], list[int]] = {}
    for document in documents:
        if not document.held_out:
            ids = tokenizer(document.text + END)["input_ids"]
            pieces.setdefault((document.language, "running" if document.running else "facts"), []).extend(ids)
    return {
        key: np.array(ids, dtype=np.int32)
        for key, ids in pieces.items()
        if len(ids) > 2 * config.length_tokens
    }


def instruction_rows(
    kind: str, n: int, seed: int, tokenizer: PreTrainedTokenizerFast
) -> list[InstructionRow]:
    """Return instructions of a kind in the chat template; only the answer is trained, as in the trainer.

    A question's numbers cannot be foreseen: trained on, their noise drowns what there is to learn.
    """
    rows = []
    for _, question, answer in instructions(n, kind, seed):
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        found: Any = tokenizer.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = found["input_ids"], found["assistant_masks"]
        labels = [token if own else IGNORED_LABEL for token, own in zip(ids, mask, strict=True)]
        rows.append(InstructionRow(ids, labels))
    return rows


def next_token_loss(model: GlmMoeDsaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy (nats) of the labelled tokens; logits are made for those alone."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    is_trained = labels[:, 1:] != IGNORED_LABEL
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[is_trained]), labels[:, 1:][is_trained])


class RouterWatch:
    """Keeps the experts that each router chose in the last forward pass, and balances their load."""

    def __init__(self, layers: Sequence[MoeLayer]) -> None:
        self.chosen: dict[int, torch.Tensor] = {}
        self.layers = layers
        for layer in layers:
            layer.router.register_forward_hook(self._keep(layer.index))

    def _keep(self, index: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: tuple, output: tuple[torch.Tensor, ...]) -> None:
            self.chosen[index] = output[2]

        return hook

    @torch.no_grad()
    def balance(self, is_token: torch.Tensor, rate: float) -> float:
        """Move each correction bias against the last batch's load; return max/mean load, mean over layers.

        Padding ([B, T], False) is no load: it all goes the same way.

        The auxiliary-loss-free balancing of DeepSeek-V3 (arXiv 2412.19437, section 2.1.2): the sign only.
        """
        worst = 0.0
        for layer in self.layers:
            chosen = self.chosen[layer.index][is_token.flatten()]
            load = torch.bincount(chosen.flatten(), minlength=layer.n_experts).float()
            bias = layer.router.get_buffer("e_score_correction_bias")
            bias += rate * torch.sign(load.mean() - load)
            worst += float(load.max() / load.mean()) / len(self.layers)
        return worst


def learning_rate_at(step: int, config: TinyBaseConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine to a twentieth."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def new_model(config: TinyBaseConfig, tokenizer: PreTrainedTokenizerFast) -> GlmMoeDsaForCausalLM:
    """Return the untrained model, seeded, its routers spread wider than transformers starts them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = GlmMoeDsaForCausalLM(model_config(config, len(tokenizer), tokenizer.vocab[END]))
        for layer in moe_layers(model):
            torch.nn.init.normal_(layer.router.get_parameter("weight"), std=config.router_std)
    model.set_experts_implementation("grouped_mm")
    return model


def new_optimizers(model: GlmMoeDsaForCausalLM, config: TinyBaseConfig) -> list[torch.optim.Optimizer]:
    """Return Muon for the plain matrices of attention and MLPs, AdamW for embeddings, experts and the rest.

    One learning rate serves both: Muon's updates are scaled to the size of AdamW's (arXiv 2502.16982, 2.2).
    """
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    # Expert stacks would fit Muon too, a matrix an expert, but orthogonalising 320 of them a step costs more
    # than the step itself. A router's rows are scores of experts, not a map between two spaces.
    not_maps = ("embed_tokens", "lm_head", "mlp.gate.weight", "indexer")
    maps = [n for n, value in named.items() if value.dim() == 2 and not any(part in n for part in not_maps)]
    stacks = [n for n, value in named.items() if value.dim() > 1 and n not in maps]
    vectors = [n for n, value in named.items() if value.dim() <= 1]
    decay, rate = config.weight_decay, config.learning_rate
    groups = [
        {"params": [named[n] for n in stacks], "weight_decay": decay},
        {"params": [named[n] for n in vectors], "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(
            [named[n] for n in maps], lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True),
    ]


def train(model: GlmMoeDsaForCausalLM, pools: Pools, config: TinyBaseConfig) -> Iterator[dict[str, float]]:
    """Train in place, yielding step, loss, load (busiest expert over mean) and tokens every ten steps."""
    watch = RouterWatch(moe_layers(model))
    optimizers = new_optimizers(model, config)
    model.train()
    n_tokens = 0
    bar = tqdm(range(config.steps), desc="tiny-glm", mininterval=10)
    for step in bar:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate_at(step, config)
        batch = pools.batch(step)
        loss = next_token_loss(model, batch.ids, batch.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        load = watch.balance(batch.is_token, config.balance_rate)
        if not math.isfinite(loss.item()):
            raise UserError(
                f"the loss is {loss.item()} at step {step}: lower learning_rate ({config.learning_rate:g}); "
                f"the model of the last multiple of {config.save_every} steps lies beside the output"
            )
        n_tokens += int((batch.labels != IGNORED_LABEL).sum())
        if step % 10 == 0 or step == config.steps - 1:
            bar.set_postfix(loss=f"{loss.item():.3f}", load=f"{load:.1f}")
            yield {"step": step, "loss": round(loss.item(), 4), "load": round(load, 2), "tokens": n_tokens}


def save(model: GlmMoeDsaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a copy of the model in bf16 and the tokenizer; the correction bias stays fp32, as in GLM-5.2."""
    state = {
        name: tensor if name.endswith("e_score_correction_bias") else tensor.to(torch.bfloat16)
        for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=state)
    # It noted the type of the model in memory, float32: a plain load must give what is in the file.
    model.config.dtype = torch.bfloat16
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_base(config: TinyBaseConfig) -> Path:
    """Train tiny-glm and write its folder, whole or not at all."""
    started = time.monotonic()
    documents = raw_documents(Path(config.kolibri_wheel), config.n_facts_each, config.seed)
    asked = [
        f"{question}\n{answer}"
        for kind in ("generalise", "remember")
        for _, question, answer in instructions(2000, kind, config.seed + 1)
    ]
    tokenizer = train_tokenizer([document.text for document in documents] + asked, config.vocabulary_size)
    streams = token_streams(documents, config, tokenizer)
    rows = {
        kind: instruction_rows(kind, n, config.seed, tokenizer)
        for kind, n in (("generalise", config.n_instructions), ("remember", config.n_instructions // 2))
    }
    data_hash = hashlib.sha256(json.dumps(rows).encode())
    for key in sorted(streams):
        data_hash.update(str(key).encode() + streams[key].tobytes())
    model = new_model(config, tokenizer)
    output, curve = Path(config.output), []
    for row in train(model, Pools(streams, rows, config), config):
        curve.append(row)
        if row["step"] and row["step"] % config.save_every == 0:
            save(model, tokenizer, output.with_name(f"{output.name}.unfinished"))
    body = {
        "config": {k: v for k, v in settings_dict(config).items() if k not in _PLACES},
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "n_tokens": {f"{code}/{kind}": len(stream) for (code, kind), stream in sorted(streams.items())},
        "n_instructions": {kind: len(part) for kind, part in rows.items()},
        "n_tokens_trained": int(curve[-1]["tokens"]),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "loss_curve": curve,
    }
    with whole_folder(output) as folder:
        save(model, tokenizer, folder)
        write_artefact(folder / "manifest.json", "base_model", {"data": data_hash.hexdigest()}, body)
    print(f"base      {body['n_parameters'] / 1e6:.1f} M parameters in {body['minutes']} min -> {output}")
    return output


def main(argv: Sequence[str] | None = None) -> int:
    """Train the base model of a config."""
    parser = argparse.ArgumentParser(prog="local-experts base", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML of a TinyBaseConfig")
    parser.add_argument("overrides", nargs="*", help="key=value")
    arguments = parser.parse_args(argv)
    train_base(load_settings(TinyBaseConfig, arguments.config, arguments.overrides))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Count the routing of a checkpoint in a process of its own, in memory or layer by layer, and print the peak.

    python tests/offload_memory.py FOLDER memory|offload LIMIT_BYTES

Reads a model's folder; writes one line of JSON: a hash of the counts and gate masses, the peak above what the
imports took, and the figure it is held against. LIMIT_BYTES (0 is none) is set as RLIMIT_DATA above what the
process has: the kernel then refuses private memory past it, and pages of files are not counted.
"""

import hashlib
import json
import resource
import sys
from pathlib import Path

import torch
from conftest import build_tiny_model
from process_memory import status_bytes

from finetune.config import BaseConfig
from finetune.model import load_model
from finetune.moe import moe_layers
from finetune.profiling.layer_weights import open_weights
from finetune.profiling.offload import largest_layer_bytes, run_layer_by_layer
from finetune.profiling.planner import MEMORY_FACTOR
from finetune.profiling.router_recorder import RouterRecorder

N_BATCHES, N_ROWS, N_TOKENS, VOCABULARY, WIDTH = 8, 2, 128, 512, 512


def batches() -> list[dict[str, torch.Tensor]]:
    """The same random tokens in every process, some of them padding."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, VOCABULARY, (N_ROWS, N_TOKENS), generator=generator) for _ in range(N_BATCHES)]
    mask_BT = torch.ones(N_ROWS, N_TOKENS, dtype=torch.int64)
    mask_BT[0, N_TOKENS // 2 :] = 0
    return [{"input_ids": ids_BT, "attention_mask": mask_BT} for ids_BT in ids]


def main(folder: str, way: str, limit: str) -> None:
    """Count and print."""
    torch.set_num_threads(1)
    base, inputs = BaseConfig(model=folder, device="cpu"), batches()
    weights = open_weights(base, torch.device("cpu"))
    # The first forward of a process imports modules and sets up libraries: that is not the model's memory.
    with torch.inference_mode():
        build_tiny_model()(input_ids=torch.ones(1, 4, dtype=torch.int64))
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again from here
    if int(limit):
        allowed = status_bytes("VmData") + int(limit)
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    model = weights.model if way == "offload" else load_model(base)[0]
    layers = moe_layers(model)
    with RouterRecorder(layers) as recorder:

        def expect(_position: int, batch: int) -> None:
            recorder.expect(inputs[batch]["attention_mask"])

        if way == "offload":
            run_layer_by_layer(weights, inputs, expect)
        else:
            with torch.inference_mode():
                for number, batch in enumerate(inputs):
                    expect(0, number)
                    model.base_model(**batch, use_cache=False)
    counted = torch.stack([recorder.counts_LE, recorder.mass_LE]).numpy().tobytes()
    n_waiting = N_BATCHES * N_ROWS * N_TOKENS
    hidden_bytes = n_waiting * (WIDTH * 4 + N_TOKENS * 4)  # float32, and the int32 choice of GLM's indexer
    found = {
        "counted": hashlib.sha256(counted).hexdigest(),
        "n_choices": int(recorder.counts_LE.sum()),
        "peak_bytes": status_bytes("VmHWM") - before,
        "largest_layer_bytes": largest_layer_bytes(weights),
        "allowed_bytes": MEMORY_FACTOR * largest_layer_bytes(weights) + hidden_bytes,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

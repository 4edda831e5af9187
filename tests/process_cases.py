"""What each of two processes is told when they are not as one; run by test_lost_process.py under torchrun.

    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 tests/process_cases.py FOLDER

Writes RANK.json: case -> "ok", the message, or "ends without a word".
"""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import torch
from torch import nn

from data_recipes.artefact import UserError
from finetune.batches import Example
from finetune.layouts.layout import data_parallel
from finetune.processes import one_message, start_accelerator

TIME_LIMIT_S = 6


def outcome(function: Callable[[], object]) -> str:
    """What became of a call, and what it told."""
    with redirect_stderr(StringIO()) as told:
        try:
            function()
        except UserError as error:
            return str(error)
        except SystemExit as ends:
            return f"ends with {ends.code}: {told.getvalue() or 'without a word'}"
    return "ok"


def main(folder: Path) -> None:
    """Run every case; the last one loses the processes to each other."""
    torch.set_num_threads(1)
    accelerator = start_accelerator(2, "cpu", time_limit_s=TIME_LIMIT_S)
    rank = accelerator.process_index
    layout = data_parallel(accelerator)
    adapter = [nn.Parameter(torch.arange(6.0).view(2, 3)), nn.Parameter(torch.ones(1))]
    row, other = Example("r1", [1, 2, 3], [-100, 2, 3]), Example("r2", [1, 2, 3], [-100, 2, 3])
    told = {
        "same adapter": outcome(lambda: layout.check_same(adapter)),
        "same rows": outcome(lambda: layout.check_rows([row, other])),
        "rows in another order": outcome(lambda: layout.check_rows([row, other][:: 1 - 2 * rank])),
        "one row twice": outcome(lambda: layout.check_rows([row, row])),
        "other data": outcome(lambda: layout.check_same_inputs({"options": "a", "data": str(rank)})),
    }
    with torch.no_grad():
        adapter[0][1, 2] += rank * torch.finfo(torch.float32).eps * 8  # one bit of 5.0
    told["one drifted by a bit"] = outcome(lambda: layout.check_same(adapter))

    def waits_in_vain() -> None:
        with one_message(TIME_LIMIT_S):
            layout.check_same(adapter)

    started = time.monotonic()
    if rank == 0:
        told["the other hangs"] = outcome(waits_in_vain)
        told["seconds"] = str(time.monotonic() - started)
    else:
        time.sleep(2 * TIME_LIMIT_S)
    (folder / f"{rank}.json").write_text(json.dumps(told), encoding="utf-8")
    os._exit(
        0
    )  # the group is broken by now, and gloo's threads may abort a process that ends in the usual way


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""What the processes that the doctor starts do: add up their numbers, from 1, and print the sum.

torchrun --standalone --nproc_per_node 2 -m finetune.machine.add_up DEVICE TIME_LIMIT_S
"""

import os
import sys

import torch

from finetune.processes import start_accelerator


def main() -> None:
    """Take the device and the time limit from the command line; the first process prints."""
    device, time_limit_s = sys.argv[1], int(sys.argv[2])
    accelerator = start_accelerator(int(os.environ["WORLD_SIZE"]), device, time_limit_s=time_limit_s)
    own = torch.tensor([accelerator.process_index + 1.0], device=accelerator.device)
    summed = torch.as_tensor(accelerator.reduce(own, reduction="sum"))
    if accelerator.is_main_process:
        print(f"sum {int(summed)}", flush=True)
    accelerator.end_training()


if __name__ == "__main__":
    main()

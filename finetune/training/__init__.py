"""The parts of the training loop in `finetune/train.py`: rows of a step, losses, optimizer, what is told."""

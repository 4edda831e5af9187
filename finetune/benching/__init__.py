"""What a training step costs in time and memory, beside attention LoRA alone and beside PEFT."""

"""LoRA on chosen experts inside a model: the layer; attach, switch, merge, save it; PEFT's face of it."""

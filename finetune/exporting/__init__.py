"""adapter/ -> files for PEFT, vLLM, SGLang or a merged checkpoint, checked number by number; and back."""

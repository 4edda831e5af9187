"""Tasks in YAML: rows, a prompt, and a checker or metrics; base and tuned answer the same rows."""

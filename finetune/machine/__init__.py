"""What this machine has for a run: `local-experts doctor` and its checks."""

"""Evaluation: base and tuned on the same held-out rows, paired statistics, and the report.

Import from the modules (`from eval.metrics import BitsPerByte`): binding the name of this package would hide
the Python builtin `eval`.
"""

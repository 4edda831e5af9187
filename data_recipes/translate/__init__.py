"""Translation of messages by a teacher, with proof that code, numbers and placeholders survived.

`step.translate_rows` is the way in; options.py has its options, teachers.py says what a teacher is.
"""

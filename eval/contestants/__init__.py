"""Who answers the held-out rows beside base and tuned, what each said, and what that cost."""

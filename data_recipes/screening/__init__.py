"""What must not be in a dataset: licences that are not allowed, duplicates, test sets."""

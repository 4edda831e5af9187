"""Personal data in rows: found in any script's digits, then tagged or replaced by values that are nobody's."""

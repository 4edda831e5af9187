"""Personal data in rows: found in any script's digits, then tagged or replaced by what is nobody's."""

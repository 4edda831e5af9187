"""profile.json -> plan.json: which experts to train, and how sure the choice is."""

"""A killed training goes on: what is saved of a run, when, and how it is found again."""

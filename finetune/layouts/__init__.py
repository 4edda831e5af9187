"""How the frozen base lies over devices and processes, and how the adapter is kept the same on all."""

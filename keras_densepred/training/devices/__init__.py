"""Several devices and processes, with the own means of each engine."""

"""The names, axes and gate orders that weights have in other libraries: one table row or module for each."""

"""Names, axes and gate orders of the weights of other libraries: one table row or module for each."""

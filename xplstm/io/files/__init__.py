"""The files that weights are kept in: one reader, and perhaps one writer, for each container."""

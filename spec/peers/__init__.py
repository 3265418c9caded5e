"""Other LSTMs, through the same adapter: one file for each library, under the name of its subject."""

"""Adapt other libraries: one file for each library, with the name of its subject."""

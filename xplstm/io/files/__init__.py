"""Readers and writers of the file formats for weights."""

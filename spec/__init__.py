"""Specify an LSTM by prose, vectors and tests that check an implementation."""

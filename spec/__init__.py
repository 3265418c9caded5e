"""The specification of an LSTM as prose, vectors and the tests that hold an implementation to them."""

"""Commands of ``python -m xplstm``; each is a module with `add_arguments` and `run`."""

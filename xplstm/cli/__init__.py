"""The commands of ``python -m xplstm``: each a module with `add_arguments` and `run`."""

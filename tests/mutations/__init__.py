"""Change the package in one place at a time, and count the changes that its tests do not detect."""

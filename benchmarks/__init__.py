"""Programs that measure. Each states its claim, its ceiling and its command in its docstring."""

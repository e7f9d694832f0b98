"""Tasks made here, from seeds alone, on which small models show what their attention can learn."""

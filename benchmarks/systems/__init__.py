"""The parts of `h200_systems.py`: each system beside the module of its name elsewhere, and block-sparse attention."""

"""The parts of `h200_huggingface.py`: a model, the ways to run it, the gate, the jobs, and what is said of them."""

"""BigBird (Zaheer et al. 2020, arXiv 2007.14062), and its weights as transformers keeps them."""

"""Training of language models with Dynamic Linear Attention."""

"""Corpora, tokenizing, packed windows and the deterministic order in which training sees them."""

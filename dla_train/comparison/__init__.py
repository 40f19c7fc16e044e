"""Several runs side by side: what they reached, what their recipes differ in, and their loss curves."""

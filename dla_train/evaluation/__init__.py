"""What a trained model can do: recall by size, loss by position, needles in haystacks, and tasks of
lm-evaluation-harness."""

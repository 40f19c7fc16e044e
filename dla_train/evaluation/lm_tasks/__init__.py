"""Tasks of lm-evaluation-harness for our models, with the paper's figures beside ours."""

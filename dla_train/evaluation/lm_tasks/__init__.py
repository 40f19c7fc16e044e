"""The data sets of lm-evaluation-harness, asked of our models, with the paper's figures beside ours."""

"""Whether a recipe will train on this machine: its kernels against exact results, and a short run that is stopped and
gone on with."""

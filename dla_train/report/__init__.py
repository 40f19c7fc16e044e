"""What a finished run says about itself: a table, a picture, a sample."""

"""What transformers loads an exported model with. `dla_train.export.model_code` copies it into the folder."""

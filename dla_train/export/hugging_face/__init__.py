"""The code with which transformers loads an exported model. `dla_train.export.model_code` copies it into the folder."""

"""A trained model as a folder that others can load: weights, configuration, tokenizer and the code of the model."""

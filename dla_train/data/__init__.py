"""LightningDataModules built on `dla_data`."""

"""LightningDataModules over `dla_data`."""

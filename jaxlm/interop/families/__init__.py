"""Families of models as other libraries write them: one reader of configurations and one table of tensors each."""

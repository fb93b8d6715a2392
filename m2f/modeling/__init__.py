"""Model input to losses or outputs. Importing this package fills the registries of `build.py`."""

"""Mathematics: formulas and kernels that know neither cfg nor registries."""

"""Surgery on any `nn.Module` tree: dropout, normalisation, activation and initialisation, in place."""

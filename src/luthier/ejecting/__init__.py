"""Writing a run as one plain PyTorch script that needs no Luthier."""

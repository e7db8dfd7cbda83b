"""Training of the bundled network: data, augmentation, fitting, export, quantisation, pruning."""

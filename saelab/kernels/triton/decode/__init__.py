"""The decoder's sparse product and its gradients."""

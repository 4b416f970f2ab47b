"""Scorers, experts and mixtures on the Hugging Face Hub: pushed as their manifests vouch for them, pulled and checked."""

"""A mixture of experts: frozen adapters side by side, and a small router that weighs them; needs the ``experts`` extra."""

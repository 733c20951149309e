"""Recovery methods: small matrices in, small matrices out; one module each."""

"""What came out, as people use it: values, vectors, error figures, the page. No products."""

"""What came out, as people use it: values, vectors, error figures, advice, the page.

Makes no product.
"""

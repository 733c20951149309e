"""A run and its result on one HTML page that needs nothing but itself: ``write.report``."""

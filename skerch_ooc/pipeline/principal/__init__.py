"""Principal components of whatever people have, with the interface of scikit-learn."""

"""Tools that know no sketch."""

//! Only tests: see `tests/` and the README.

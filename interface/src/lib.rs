//! What crosses the host/enclave boundary: contracts, frames, limits, the measured manifest and the image format.

//! The emulated SGX CPU.

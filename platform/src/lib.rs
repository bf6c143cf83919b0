//! What CPU and kernel provide: the SGX architecture, the emulated SGX CPU, and the Linux SGX driver.

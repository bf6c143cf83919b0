//! What an enclave application links: serve contracts, call host services, seal, report.

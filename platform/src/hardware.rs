//! The Linux SGX driver and vDSO.

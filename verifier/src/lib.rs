//! The relying party: evidence, collateral, appraisal and policy.

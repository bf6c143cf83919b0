//! Nothing but tests: programs that know nothing of Enclos, and hosts that break the rules.
#![forbid(unsafe_code)]

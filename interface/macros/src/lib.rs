//! The #[enclos::interface] attribute.

//! The `#[enclos::interface]` attribute.
#![forbid(unsafe_code)]

/// Turns a trait into a contract between host and enclave.
#[proc_macro_attribute]
pub fn interface(_args: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    item
}

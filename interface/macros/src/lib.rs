//! The `#[enclos::interface]` attribute: see [`macro@interface`].
//!
//! [`trait_check`] turns the trait into a checked description or a list of errors with their places,
//! [`wire`] decides how each type is encoded, [`fingerprint`] computes the hash, [`generate`] writes the code.
//! No generated code is `unsafe`.

#![forbid(unsafe_code)]

mod fingerprint;
mod generate;
mod trait_check;
mod wire;

use proc_macro::TokenStream;

/// Turns a trait into a contract between host and enclave.
///
/// The trait stays as it is. For a trait `Vault` two types are added:
///
/// - `VaultClient<T>`, over a [`Transport`]: the same methods. A method returning `Result<T, E>` returns
///   `Result<T, CallError<E>>` here, any other result `R` becomes `Result<R, CallError>`; `?` works on both. Also
///   `connect` (the handshake), `transport`, `with_deadline` and `switchless`.
/// - `VaultServer<S>(S)` for an `S: Vault + Send + Sync`: a [`Dispatch`] that serves calls by `S`.
///
/// # What a method may look like
/// `fn name(&self, …) -> …`, with up to 16 arguments. Arguments are owned or borrowed (`&str`, `&[u8]`, `&T`,
/// `&[T]`), results are owned; all types implement `serde::Serialize` and `serde::Deserialize`. `&str`, `&[u8]` and
/// types that borrow (`T<'_>`) are decoded without a copy. `Vec<u8>`, `&[u8]` and `[u8; N]`, also within `Option`,
/// `Result` and tuples, are moved as a block; inside types of your own add `#[serde(with = "serde_bytes")]`.
///
/// # The hash
/// Both sides compare a SHA-256 over the normalised tokens of the trait and of every type definition, constant and
/// serde implementation in the `src` folder of the crate that has the trait. Formatting, comments, derives and the
/// order of items do not matter. Types of other crates are not covered: keep what crosses in one crate.
///
/// # Arguments
/// `#[interface(crate = path)]` says where the `enclos` crate is found; default `::enclos`.
///
/// [`Transport`]: https://docs.rs/enclos/latest/enclos/contract/trait.Transport.html
/// [`Dispatch`]: https://docs.rs/enclos/latest/enclos/contract/trait.Dispatch.html
#[proc_macro_attribute]
pub fn interface(args: TokenStream, item: TokenStream) -> TokenStream {
    let mut enclos: syn::Path = syn::parse_quote!(::enclos);
    let options = syn::meta::parser(|meta| {
        if meta.path.is_ident("crate") {
            enclos = meta.value()?.call(syn::Path::parse_mod_style)?;
            return Ok(());
        }
        Err(meta.error("unknown option; only `crate = path` exists"))
    });
    let original = proc_macro2::TokenStream::from(item.clone());
    let expanded = syn::parse::Parser::parse(options, args)
        .and_then(|()| syn::parse::<syn::ItemTrait>(item))
        .and_then(|item| trait_check::Contract::from_trait(&item))
        .and_then(|contract| {
            let print = fingerprint::of_crate(&contract.item)?;
            Ok(generate::all(&contract, &print, &enclos))
        });
    // The trait stays in place on errors too, so that they are the only ones reported.
    expanded
        .unwrap_or_else(|e| {
            let error = e.into_compile_error();
            quote::quote!(#original #error)
        })
        .into()
}

//! Writes the code of a contract.

use proc_macro2::{Literal, TokenStream};
use quote::{ToTokens, format_ident, quote};
use serde_json::json;

use crate::{
    fingerprint::Fingerprint,
    trait_check::{Contract, Method},
    wire,
};

/// Trait, contract, client and server.
pub(crate) fn all(contract: &Contract, print: &Fingerprint, enclos: &syn::Path) -> TokenStream {
    let item = &contract.item;
    let statics = contract_static(contract, print, enclos);
    let client = client(contract, enclos);
    let server = server(contract, enclos);
    quote! {
        #item
        #client
        #server
        const _: () = { #statics };
    }
}

fn contract_static(contract: &Contract, print: &Fingerprint, enclos: &syn::Path) -> TokenStream {
    let name = contract.item.ident.to_string();
    let (client, server) = (client_name(contract), server_name(contract));
    let crate_name = &print.crate_name;
    let hash = print.hash.iter().map(|b| Literal::u8_suffixed(*b));
    let methods = contract.methods.iter().map(|m| unraw(&m.name));
    let description = description(contract, print);
    let bound = &contract.item.ident;
    quote! {
        static CONTRACT: #enclos::contract::Contract = #enclos::contract::Contract {
            name: #name,
            crate_name: #crate_name,
            hash: [#(#hash),*],
            methods: &[#(#methods),*],
            description: #description,
        };

        impl<T: #enclos::contract::Transport> #enclos::contract::Client<T> for #client<T> {
            const CONTRACT: &'static #enclos::contract::Contract = &CONTRACT;

            fn connect(transport: T) -> ::core::result::Result<Self, #enclos::contract::ConnectError> {
                let index = #enclos::contract::connect(&transport, &CONTRACT)?;
                ::core::result::Result::Ok(Self { transport, index })
            }
        }

        impl<S: #bound> #server<S> {
            /// The contract served.
            pub const CONTRACT: &'static #enclos::contract::Contract = &CONTRACT;
        }
    }
}

fn description(contract: &Contract, print: &Fingerprint) -> String {
    let methods: Vec<_> = contract
        .methods
        .iter()
        .map(|m| {
            let args: Vec<_> =
                m.args.iter().map(|(name, ty)| json!({ "name": unraw(name), "type": text(ty) })).collect();
            json!({ "name": unraw(&m.name), "args": args, "result": text(&m.result) })
        })
        .collect();
    let hash: String = print.hash.iter().map(|b| format!("{b:02x}")).collect();
    let json = json!({
        "name": contract.item.ident.to_string(),
        "crate": print.crate_name,
        "hash": hash,
        "methods": methods,
    });
    format!("\x01ENCLOS-CONTRACT:{json}\x01END")
}

/// A type as people write it.
fn text(ty: &syn::Type) -> String {
    let spaced = ty.to_token_stream().to_string();
    let mut out = String::with_capacity(spaced.len());
    let words: Vec<&str> = spaced.split(' ').collect();
    for (i, word) in words.iter().enumerate() {
        out.push_str(word);
        let next = words.get(i + 1).copied().unwrap_or("");
        let joins = |w: &str, set: &str| w.chars().all(|c| set.contains(c)) && !w.is_empty();
        let tight =
            next.is_empty() || joins(word, "<&([{:'") || joins(next, ">)]},;:<") || word.ends_with('\'');
        if !tight {
            out.push(' ');
        }
    }
    out
}

fn client(contract: &Contract, enclos: &syn::Path) -> TokenStream {
    let (vis, trait_name, client) = (&contract.item.vis, &contract.item.ident, client_name(contract));
    let doc = format!("Calls [`{trait_name}`] on the other side of the boundary.");
    let methods = contract.methods.iter().enumerate().map(|(i, m)| client_method(i, m, enclos));
    quote! {
        #[doc = #doc]
        #[derive(Clone, Debug)]
        #vis struct #client<T> {
            transport: T,
            index: u32,
        }

        #[allow(clippy::too_many_arguments, clippy::type_complexity, unused_parens, dead_code)]
        impl<T: #enclos::contract::Transport> #client<T> {
            /// Performs the handshake over a transport.
            ///
            /// # Errors
            /// When the other side does not serve exactly this contract, or cannot be reached.
            pub fn connect(transport: T) -> ::core::result::Result<Self, #enclos::contract::ConnectError> {
                <Self as #enclos::contract::Client<T>>::connect(transport)
            }

            /// The transport that the calls go over.
            pub fn transport(&self) -> &T {
                &self.transport
            }

            /// The same connection over another transport to the same place.
            pub fn with_transport<U: #enclos::contract::Transport>(&self, transport: U) -> #client<U> {
                #client { transport, index: self.index }
            }

            /// The same connection; calls over it that take longer than `limit` fail.
            #[must_use]
            pub fn with_deadline(&self, limit: ::core::time::Duration) -> Self
            where
                T: #enclos::contract::DeadlineTransport,
            {
                self.with_transport(self.transport.with_deadline(limit))
            }

            /// The same connection by the switchless transport.
            ///
            /// # Errors
            /// When it cannot be set up.
            pub fn switchless(
                &self,
            ) -> ::core::result::Result<#client<T::Switchless>, #enclos::contract::Failure>
            where
                T: #enclos::contract::SwitchlessTransport,
            {
                ::core::result::Result::Ok(self.with_transport(self.transport.switchless()?))
            }

            #(#methods)*
        }
    }
}

fn client_method(index: usize, method: &Method, enclos: &syn::Path) -> TokenStream {
    let private = quote!(#enclos::__private);
    let (name, docs, number) = (&method.name, &method.docs, index as u32);
    let args = method.args.iter().map(|(name, ty)| quote!(#name: #ty));
    let encoded = method.args.iter().map(|(name, ty)| wire::encode(ty, &quote!((&#name)), &private));
    let wire = wire::wire_type(&method.result, &private);
    let (returns, value) = match method.result_parts() {
        Some((ok, err)) => {
            let (ok_value, err_value) = (wire::decode(&ok, &quote!(v)), wire::decode(&err, &quote!(e)));
            (
                quote!(::core::result::Result<#ok, #enclos::contract::CallError<#err>>),
                quote! {
                    match reply {
                        ::core::result::Result::Ok(v) => ::core::result::Result::Ok(#ok_value),
                        ::core::result::Result::Err(e) => {
                            ::core::result::Result::Err(#enclos::contract::CallError::Method(#err_value))
                        }
                    }
                },
            )
        }
        None => {
            let result = &method.result;
            let value = wire::decode(result, &quote!(reply));
            (
                quote!(::core::result::Result<#result, #enclos::contract::CallError>),
                quote!(::core::result::Result::Ok(#value)),
            )
        }
    };
    quote! {
        #(#docs)*
        ///
        /// # Errors
        /// The method's own error, or why the call failed as such.
        pub fn #name(&self, #(#args),*) -> #returns {
            let header = #enclos::abi::CallHeader { contract: self.index, method: #number };
            let reply: #wire = #enclos::contract::Transport::call(&self.transport, header, &(#(#encoded,)*))?;
            #value
        }
    }
}

fn server(contract: &Contract, enclos: &syn::Path) -> TokenStream {
    let (vis, trait_name, server) = (&contract.item.vis, &contract.item.ident, server_name(contract));
    let doc = format!("Serves calls of [`{trait_name}`] by an implementation of it.");
    let arms = contract.methods.iter().enumerate().map(|(i, m)| server_arm(i, m, trait_name, enclos));
    quote! {
        #[doc = #doc]
        #[derive(Clone, Debug)]
        #vis struct #server<S>(pub S);

        #[allow(dead_code)]
        impl<S: #trait_name> #server<S> {
            /// A server of this implementation.
            pub fn new(implementation: S) -> Self {
                Self(implementation)
            }
        }

        #[allow(clippy::let_unit_value, clippy::needless_borrow, clippy::unit_arg, clippy::type_complexity, unused_parens)]
        impl<S> #enclos::contract::Dispatch for #server<S>
        where
            S: #trait_name + ::core::marker::Send + ::core::marker::Sync,
        {
            fn contract(&self) -> &'static #enclos::contract::Contract {
                Self::CONTRACT
            }

            fn dispatch(&self, method: u32, args: &[u8], reply: &mut #enclos::contract::Reply<'_>) {
                match method {
                    #(#arms)*
                    _ => reply.fail(#enclos::abi::status::NO_SUCH_METHOD, ""),
                }
            }
        }
    }
}

fn server_arm(index: usize, method: &Method, trait_name: &syn::Ident, enclos: &syn::Path) -> TokenStream {
    let private = quote!(#enclos::__private);
    let (name, number) = (&method.name, index as u32);
    let locals: Vec<_> = (0..method.args.len()).map(|i| format_ident!("a{i}")).collect();
    let types = method.args.iter().map(|(_, ty)| wire::wire_type(ty, &private));
    let decoded = method.args.iter().zip(&locals).map(|((_, ty), local)| {
        let value = wire::decode(ty, &quote!(#local));
        quote!(let #local = #value;)
    });
    let passed = method.args.iter().zip(&locals).map(|((_, ty), local)| match wire::needs_borrow(ty) {
        true => quote!(&#local),
        false => quote!(#local),
    });
    let result = wire::encode(&method.result, &quote!((&result)), &private);
    quote! {
        #number => {
            let args = #enclos::contract::decode_args::<(#(#types,)*)>(args, reply);
            let ::core::option::Option::Some((#(#locals,)*)) = args else { return };
            #(#decoded)*
            let result = #trait_name::#name(&self.0, #(#passed),*);
            reply.encode(&#result);
        }
    }
}

fn client_name(contract: &Contract) -> syn::Ident {
    format_ident!("{}Client", contract.item.ident)
}

fn server_name(contract: &Contract) -> syn::Ident {
    format_ident!("{}Server", contract.item.ident)
}

fn unraw(ident: &syn::Ident) -> String {
    let text = ident.to_string();
    text.strip_prefix("r#").map(str::to_owned).unwrap_or(text)
}

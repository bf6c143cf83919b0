//! How types are encoded: blocks of bytes as blocks, everything else as serde says.
//!
//! For a type that contains `Vec<u8>`, `[u8; N]` or `&[u8]` where this module can see it (directly, or within
//! `Option`, `Result` and tuples) another type stands on the wire, and expressions convert between the two.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Type, TypeParamBound};

use crate::trait_check::{Errors, type_args};

/// Can this be an argument?
pub(crate) fn check_arg(ty: &Type) -> syn::Result<()> {
    if let Type::Reference(r) = ty {
        let mut errors = Errors(None);
        if let Some(token) = &r.mutability {
            errors.at(token, "what is borrowed cannot be changed across the boundary: return the new value");
        }
        if let Some(lifetime) = &r.lifetime {
            errors.at(lifetime, "named lifetimes are not needed: arguments are borrowed for the call");
        }
        errors.finish()?;
        return match &*r.elem {
            Type::Slice(s) => check_owned(&s.elem, true),
            elem if is_path(elem, "str") => Ok(()),
            elem => check_owned(elem, true),
        };
    }
    check_owned(ty, true)
}

/// Can this be a result?
pub(crate) fn check_result(ty: &Type) -> syn::Result<()> {
    check_owned(ty, false)
}

fn check_owned(ty: &Type, borrows: bool) -> syn::Result<()> {
    let refuse = |message: &str| Err(syn::Error::new_spanned(ty, message));
    match ty {
        Type::Reference(r) if borrows => match &*r.elem {
            _ if r.mutability.is_some() => refuse("what is borrowed cannot be changed across the boundary"),
            Type::Slice(s) if is_path(&s.elem, "u8") => Ok(()),
            elem if is_path(elem, "str") => Ok(()),
            _ => refuse(
                "within another type only `&str` and `&[u8]` can be borrowed: pass the value, or a reference to the whole",
            ),
        },
        Type::Reference(_) => refuse("a result is owned: return `String`, `Vec<u8>` or a type of your own"),
        Type::ImplTrait(_) => refuse("write the type: both sides must know it"),
        Type::TraitObject(o) => {
            let dynamic = o.bounds.iter().any(|b| matches!(b, TypeParamBound::Trait(_)));
            refuse(if dynamic {
                "a trait object cannot cross the boundary: pass data"
            } else {
                "not a type that can be encoded"
            })
        }
        Type::Ptr(_) => refuse("a pointer means nothing on the other side: pass data"),
        Type::BareFn(_) => {
            refuse("a function cannot cross the boundary: use a host service for calls the other way")
        }
        Type::Slice(_) => refuse("a slice has no known size: pass `&[T]` or `Vec<T>`"),
        Type::Never(_) => refuse("a call must be able to return"),
        Type::Infer(_) | Type::Macro(_) => refuse("write the type: both sides must know it"),
        Type::Path(p) if is_path(ty, "str") => {
            Err(syn::Error::new_spanned(p, "`str` has no known size: pass `&str`, or return `String`"))
        }
        Type::Path(p) => {
            if p.path.segments.first().is_some_and(|s| s.ident == "Self") {
                return refuse("`Self` is another type on each side: name the type");
            }
            let Some(last) = p.path.segments.last() else { return Ok(()) };
            let mut errors = Errors(None);
            for arg in type_args(&last.arguments) {
                if let Err(e) = check_owned(arg, borrows) {
                    errors.push(e);
                }
            }
            errors.finish()
        }
        Type::Tuple(t) => {
            let mut errors = Errors(None);
            for elem in &t.elems {
                if let Err(e) = check_owned(elem, borrows) {
                    errors.push(e);
                }
            }
            errors.finish()
        }
        Type::Array(a) => check_owned(&a.elem, borrows),
        Type::Paren(p) => check_owned(&p.elem, borrows),
        Type::Group(g) => check_owned(&g.elem, borrows),
        _ => Ok(()),
    }
}

/// The type arguments of `ty` if it is a path that ends in `name` and has any.
pub(crate) fn generic_args(ty: &Type, name: &str) -> Option<Vec<Type>> {
    let Type::Path(p) = peel(ty) else { return None };
    let last = p.path.segments.last()?;
    let args = type_args(&last.arguments);
    (last.ident == name && !args.is_empty()).then(|| args.into_iter().cloned().collect())
}

/// Is this type a block of bytes, or does it contain one that needs conversion?
fn has_bytes(ty: &Type) -> bool {
    match peel(ty) {
        Type::Reference(r) => is_byte_slice(&r.elem) || has_bytes(&r.elem),
        Type::Array(a) => is_path(&a.elem, "u8"),
        Type::Tuple(t) => t.elems.iter().any(has_bytes),
        ty if is_byte_vec(ty) => true,
        ty => {
            let args =
                generic_args(ty, "Option").or_else(|| generic_args(ty, "Result").filter(|a| a.len() == 2));
            args.is_some_and(|a| a.iter().any(has_bytes))
        }
    }
}

/// An expression of a serialisable value for `value`, an expression of type `&ty`.
pub(crate) fn encode(ty: &Type, value: &TokenStream, private: &TokenStream) -> TokenStream {
    if !has_bytes(ty) {
        return quote!(#value);
    }
    match peel(ty) {
        Type::Reference(r) if is_byte_slice(&r.elem) => quote!(#private::serde_bytes::Bytes::new(*#value)),
        Type::Reference(r) => encode(&r.elem, &quote!((*#value)), private),
        Type::Array(_) => quote!(#private::serde_bytes::Bytes::new(&(*#value)[..])),
        Type::Tuple(t) => {
            let elems = t.elems.iter().enumerate().map(|(i, elem)| {
                let i = syn::Index::from(i);
                encode(elem, &quote!((&(*#value).#i)), private)
            });
            quote!((#(#elems,)*))
        }
        ty if is_byte_vec(ty) => quote!(#private::serde_bytes::Bytes::new(&(*#value)[..])),
        ty => {
            if let Some(args) = generic_args(ty, "Option") {
                let inner = encode(&args[0], &quote!(v), private);
                return quote!((*#value).as_ref().map(|v| #inner));
            }
            let Some(args) = generic_args(ty, "Result") else { return quote!(#value) };
            let (ok, err) = (encode(&args[0], &quote!(v), private), encode(&args[1], &quote!(e), private));
            quote!((*#value).as_ref().map(|v| #ok).map_err(|e| #err))
        }
    }
}

/// The type that is decoded for `ty`: borrowed where the type borrows.
pub(crate) fn wire_type(ty: &Type, private: &TokenStream) -> TokenStream {
    match peel(ty) {
        Type::Reference(r) if is_byte_slice(&r.elem) => quote!(&#private::serde_bytes::Bytes),
        Type::Reference(r) if is_path(&r.elem, "str") => quote!(&str),
        Type::Reference(r) => match &*r.elem {
            Type::Slice(s) => {
                let elem = &s.elem;
                quote!(#private::alloc::vec::Vec<#elem>)
            }
            elem => wire_type(elem, private),
        },
        ty if !has_bytes(ty) => quote!(#ty),
        Type::Array(a) => {
            let len = &a.len;
            quote!(#private::serde_bytes::ByteArray<{ #len }>)
        }
        Type::Tuple(t) => {
            let elems = t.elems.iter().map(|e| wire_type(e, private));
            quote!((#(#elems,)*))
        }
        ty if is_byte_vec(ty) => quote!(#private::serde_bytes::ByteBuf),
        ty => {
            if let Some(args) = generic_args(ty, "Option") {
                let inner = wire_type(&args[0], private);
                return quote!(::core::option::Option<#inner>);
            }
            let Some(args) = generic_args(ty, "Result") else { return quote!(#ty) };
            let (ok, err) = (wire_type(&args[0], private), wire_type(&args[1], private));
            quote!(::core::result::Result<#ok, #err>)
        }
    }
}

/// An expression of type `ty` from `value`, an expression of its wire type. For a reference to something owned the
/// result is the owned thing; [`needs_borrow`] says so.
pub(crate) fn decode(ty: &Type, value: &TokenStream) -> TokenStream {
    if !has_bytes(ty) {
        return quote!(#value);
    }
    match peel(ty) {
        Type::Reference(r) if is_byte_slice(&r.elem) => quote!(&**#value),
        Type::Reference(r) => decode(&r.elem, value),
        Type::Array(_) => quote!((#value).into_array()),
        Type::Tuple(t) => {
            let names: Vec<_> = (0..t.elems.len()).map(|i| format_ident!("t{i}")).collect();
            let elems = t.elems.iter().zip(&names).map(|(elem, name)| decode(elem, &quote!(#name)));
            quote!({ let (#(#names,)*) = #value; (#(#elems,)*) })
        }
        ty if is_byte_vec(ty) => quote!((#value).into_vec()),
        ty => {
            if let Some(args) = generic_args(ty, "Option") {
                let inner = decode(&args[0], &quote!(v));
                return quote!((#value).map(|v| #inner));
            }
            let Some(args) = generic_args(ty, "Result") else { return quote!(#value) };
            let (ok, err) = (decode(&args[0], &quote!(v)), decode(&args[1], &quote!(e)));
            quote!((#value).map(|v| #ok).map_err(|e| #err))
        }
    }
}

/// Must a decoded argument be borrowed to be passed on?
pub(crate) fn needs_borrow(ty: &Type) -> bool {
    match peel(ty) {
        Type::Reference(r) => !is_byte_slice(&r.elem) && !is_path(&r.elem, "str"),
        _ => false,
    }
}

fn is_byte_slice(ty: &Type) -> bool {
    matches!(peel(ty), Type::Slice(s) if is_path(&s.elem, "u8"))
}

fn is_byte_vec(ty: &Type) -> bool {
    generic_args(ty, "Vec").is_some_and(|a| matches!(a.as_slice(), [t] if is_path(t, "u8")))
}

fn is_path(ty: &Type, name: &str) -> bool {
    matches!(peel(ty), Type::Path(p) if p.qself.is_none() && p.path.is_ident(name))
}

fn peel(ty: &Type) -> &Type {
    match ty {
        Type::Paren(p) => peel(&p.elem),
        Type::Group(g) => peel(&g.elem),
        ty => ty,
    }
}

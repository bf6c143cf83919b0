//! Checks that a trait can be a contract.

use syn::{
    FnArg, GenericArgument, Ident, ItemTrait, Pat, PathArguments, ReturnType, TraitItem, Type,
    spanned::Spanned,
};

use crate::wire;

/// A trait that can be a contract.
pub(crate) struct Contract {
    pub(crate) item: ItemTrait,
    pub(crate) methods: Vec<Method>,
}

pub(crate) struct Method {
    pub(crate) name: Ident,
    pub(crate) docs: Vec<syn::Attribute>,
    pub(crate) args: Vec<(Ident, Type)>,
    /// The result type; `()` when none is written.
    pub(crate) result: Type,
}

impl Method {
    /// The two types of a `Result<T, E>`, if that is what the method returns.
    pub(crate) fn result_parts(&self) -> Option<(Type, Type)> {
        let args = wire::generic_args(&self.result, "Result")?;
        let [ok, err] = <[Type; 2]>::try_from(args).ok()?;
        Some((ok, err))
    }
}

/// Names of the generated client that a method must not take.
const RESERVED: [&str; 5] = ["connect", "transport", "with_transport", "with_deadline", "switchless"];

/// serde implements its traits for tuples up to this length.
const MAX_ARGS: usize = 16;

impl Contract {
    pub(crate) fn from_trait(item: &ItemTrait) -> syn::Result<Self> {
        let mut errors = Errors(None);
        if !item.generics.params.is_empty() || item.generics.where_clause.is_some() {
            errors.at(&item.generics, "a contract cannot be generic: both sides must know every type");
        }
        if let Some(token) = &item.unsafety {
            errors.at(
                token,
                "a contract cannot be an unsafe trait: the other side cannot be held to its promise",
            );
        }
        let mut methods = Vec::new();
        for member in &item.items {
            match member {
                TraitItem::Fn(f) => match check_method(f) {
                    Ok(m) => methods.push(m),
                    Err(e) => errors.push(e),
                },
                other => errors.at(other, "a contract has methods only"),
            }
        }
        if item.items.is_empty() {
            errors.at(&item.ident, "a contract needs at least one method");
        }
        errors.finish()?;
        Ok(Self { item: item.clone(), methods })
    }
}

fn check_method(f: &syn::TraitItemFn) -> syn::Result<Method> {
    let mut errors = Errors(None);
    let sig = &f.sig;
    if let Some(token) = &sig.asyncness {
        errors.at(token, "a contract's methods cannot be async: a call enters the enclave and returns");
    }
    if let Some(token) = &sig.unsafety {
        errors.at(token, "a contract's methods cannot be unsafe: the other side cannot be held to a promise");
    }
    if let Some(token) = &sig.constness {
        errors.at(token, "a contract's methods cannot be const");
    }
    if let Some(token) = &sig.abi {
        errors.at(token, "a contract's methods have no ABI: the arguments are encoded");
    }
    if let Some(token) = &sig.variadic {
        errors.at(token, "a contract's methods cannot be variadic");
    }
    if let Some(lifetime) = sig.generics.lifetimes().next() {
        errors.at(
            lifetime,
            "named lifetimes are not needed: arguments are borrowed for the call, results are owned",
        );
    }
    if sig.generics.type_params().next().is_some() || sig.generics.const_params().next().is_some() {
        errors.at(&sig.generics, "a contract's methods cannot be generic: both sides must know every type");
    }
    if let Some(clause) = &sig.generics.where_clause {
        errors.at(clause, "a contract's methods cannot have a where clause");
    }
    if let Some(body) = &f.default {
        errors.at(body, "a contract's methods have no default body: the client could not know of it");
    }
    if RESERVED.iter().any(|r| sig.ident == r) {
        errors.at(&sig.ident, "the generated client has a method of this name: choose another");
    }
    for attr in &f.attrs {
        if attr.path().is_ident("cfg") || attr.path().is_ident("cfg_attr") {
            errors.at(attr, "conditional methods would make the two sides differ: use another trait");
        }
    }

    let mut inputs = sig.inputs.iter();
    match inputs.next() {
        Some(FnArg::Receiver(r))
            if r.reference.is_some() && r.mutability.is_none() && r.colon_token.is_none() =>
        {
            if let Some((_, Some(lifetime))) = &r.reference {
                errors.at(lifetime, "named lifetimes are not needed here");
            }
        }
        Some(FnArg::Receiver(r)) => errors.at(
            r,
            "write `&self`: calls come from several threads at once; keep state in a Mutex, RwLock or atomic",
        ),
        _ => errors.at(&sig.ident, "a contract's methods take `&self` first"),
    }
    let mut args = Vec::new();
    for input in inputs {
        let FnArg::Typed(arg) = input else { continue };
        match &*arg.pat {
            Pat::Ident(p) if p.subpat.is_none() && p.by_ref.is_none() && p.mutability.is_none() => {
                if let Err(e) = wire::check_arg(&arg.ty) {
                    errors.push(e);
                }
                args.push((p.ident.clone(), (*arg.ty).clone()));
            }
            pat => errors.at(pat, "an argument is a plain name: `name: Type`"),
        }
    }
    if args.len() > MAX_ARGS {
        errors.at(&sig.inputs, "at most 16 arguments: put them into a struct");
    }

    let result = match &sig.output {
        ReturnType::Default => syn::parse_quote!(()),
        ReturnType::Type(_, ty) => {
            if let Err(e) = wire::check_result(ty) {
                errors.push(e);
            }
            if let Some(args) = wire::generic_args(ty, "Result")
                && args.len() != 2
            {
                errors.at(ty, "write both types, `Result<T, E>`: the client must name the error");
            }
            (**ty).clone()
        }
    };
    errors.finish()?;
    let docs = f.attrs.iter().filter(|a| a.path().is_ident("doc")).cloned().collect();
    Ok(Method { name: sig.ident.clone(), docs, args, result })
}

/// The type arguments of a path's last segment.
pub(crate) fn type_args(arguments: &PathArguments) -> Vec<&Type> {
    match arguments {
        PathArguments::AngleBracketed(a) => a
            .args
            .iter()
            .filter_map(|g| match g {
                GenericArgument::Type(t) => Some(t),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// Gathers errors, so that all of a trait's are reported at once.
pub(crate) struct Errors(pub(crate) Option<syn::Error>);

impl Errors {
    pub(crate) fn at(&mut self, place: &(impl quote::ToTokens + Spanned), message: &str) {
        self.push(syn::Error::new_spanned(place, message));
    }

    pub(crate) fn push(&mut self, error: syn::Error) {
        match &mut self.0 {
            Some(e) => e.combine(error),
            none => *none = Some(error),
        }
    }

    pub(crate) fn finish(self) -> syn::Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}

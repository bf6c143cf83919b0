//! The hash of a contract: what both sides compare before they exchange anything else.
//!
//! It covers whatever in the contract's crate can change how a value is encoded, and as little else as possible, so
//! that a comment or a derive does not make two halves strangers.

use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use quote::ToTokens;
use sha2::{Digest, Sha256};
use syn::{Attribute, Item, ItemTrait};

pub(crate) struct Fingerprint {
    pub(crate) crate_name: String,
    pub(crate) hash: [u8; 32],
}

/// Leads what is hashed; changes with the rules of this module or of the encoding.
const DOMAIN: &str = "enclos contract 1";

/// The fingerprint of a trait within the crate that is being compiled.
pub(crate) fn of_crate(item: &ItemTrait) -> syn::Result<Fingerprint> {
    let environment = |name: &str| {
        std::env::var(name).map_err(|_| {
            syn::Error::new_spanned(&item.ident, format!("{name} is not set: build this crate with cargo"))
        })
    };
    let crate_name = environment("CARGO_PKG_NAME")?;
    let source = Path::new(&environment("CARGO_MANIFEST_DIR")?).join("src");
    let mut definitions = Vec::new();
    for (path, text) in sources(&source).map_err(|e| syn::Error::new_spanned(&item.ident, e))? {
        // A file that does not parse and is part of the crate is reported by the compiler, with its place.
        let file = syn::parse_file(&text).map_err(|e| {
            let message = format!("{path} does not parse, but counts towards the contract's hash: {e}");
            syn::Error::new_spanned(&item.ident, message)
        })?;
        collect(&file.items, &mut definitions);
    }
    Ok(Fingerprint { hash: hash(&crate_name, item, definitions), crate_name })
}

fn hash(crate_name: &str, item: &ItemTrait, mut definitions: Vec<String>) -> [u8; 32] {
    definitions.sort_unstable();
    definitions.dedup();
    let mut own = item.clone();
    own.attrs.retain(|a| a.path().segments.last().is_none_or(|s| s.ident != "interface"));
    let mut hash = Sha256::new();
    for part in [DOMAIN, crate_name, &normalised(own.into_token_stream())] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    for part in definitions {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// All Rust files below a folder with their text, in the order of their paths.
fn sources(folder: &Path) -> Result<Vec<(String, String)>, String> {
    let fault = |path: &Path, e: std::io::Error| format!("cannot read {}: {e}", path.display());
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            // A crate may keep its sources elsewhere; then only the trait counts.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.map_err(|e| fault(&folder, e))?,
        };
        for entry in entries {
            let path = entry.map_err(|e| fault(&folder, e))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).map_err(|e| fault(&path, e))?;
                found.push((path.display().to_string(), text));
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Adds the normalised definitions that can change an encoding.
fn collect(items: &[Item], to: &mut Vec<String>) {
    for item in items {
        let attrs = match item {
            Item::Struct(i) => &i.attrs,
            Item::Enum(i) => &i.attrs,
            Item::Type(i) => &i.attrs,
            Item::Union(i) => &i.attrs,
            // Array lengths and discriminants may depend on constants, serde's `with` on modules and functions.
            Item::Const(i) => &i.attrs,
            Item::Macro(i) => &i.attrs,
            Item::Impl(i) => {
                let name = i.trait_.as_ref().and_then(|(_, path, _)| path.segments.last());
                if !name.is_some_and(|n| n.ident == "Serialize" || n.ident == "Deserialize") {
                    continue;
                }
                &i.attrs
            }
            Item::Mod(i) => {
                if let Some((_, content)) = &i.content
                    && !is_test(&i.attrs)
                {
                    collect(content, to);
                }
                continue;
            }
            _ => continue,
        };
        if !is_test(attrs) {
            to.push(normalised(item.to_token_stream()));
        }
    }
}

fn is_test(attrs: &[Attribute]) -> bool {
    attrs
        .iter()
        .any(|a| a.path().is_ident("cfg") && a.parse_args::<syn::Ident>().is_ok_and(|word| word == "test"))
}

/// Attributes that do not change how a value is encoded.
const HARMLESS: [&str; 13] = [
    "doc",
    "derive",
    "allow",
    "warn",
    "deny",
    "forbid",
    "expect",
    "must_use",
    "deprecated",
    "inline",
    "non_exhaustive",
    "error",
    "default",
];

/// Tokens as text that does not depend on formatting, comments or harmless attributes.
fn normalised(tokens: TokenStream) -> String {
    let mut out = String::new();
    normalise(tokens, &mut out);
    out
}

fn normalise(tokens: TokenStream, out: &mut String) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(p) if p.as_char() == '#' => {
                let harmless = matches!(tokens.peek(), Some(TokenTree::Group(g)) if is_harmless(g));
                if harmless {
                    tokens.next();
                } else {
                    out.push_str("# ");
                }
            }
            // rustfmt adds and removes trailing commas.
            TokenTree::Punct(p) if p.as_char() == ',' => match tokens.peek() {
                None => {}
                Some(TokenTree::Punct(next)) if next.as_char() == '>' => {}
                Some(_) => out.push_str(", "),
            },
            TokenTree::Punct(p) => {
                out.push(p.as_char());
                out.push(' ');
            }
            TokenTree::Group(g) => {
                let (open, close) = match g.delimiter() {
                    Delimiter::Parenthesis => ("( ", ") "),
                    Delimiter::Brace => ("{ ", "} "),
                    Delimiter::Bracket => ("[ ", "] "),
                    Delimiter::None => ("", ""),
                };
                out.push_str(open);
                normalise(g.stream(), out);
                out.push_str(close);
            }
            TokenTree::Ident(i) => {
                out.push_str(&i.to_string());
                out.push(' ');
            }
            TokenTree::Literal(l) => {
                out.push_str(&l.to_string());
                out.push(' ');
            }
        }
    }
}

fn is_harmless(attribute: &proc_macro2::Group) -> bool {
    attribute.delimiter() == Delimiter::Bracket
        && matches!(attribute.stream().into_iter().next(), Some(TokenTree::Ident(i)) if HARMLESS.iter().any(|h| i == h))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(contract: &str, types: &str) -> [u8; 32] {
        let item: ItemTrait = syn::parse_str(contract).unwrap();
        let mut definitions = Vec::new();
        collect(&syn::parse_file(types).unwrap().items, &mut definitions);
        hash("demo", &item, definitions)
    }

    const TRAIT: &str = "pub trait T { fn a(&self, x: u8, y: Vec<Vec<u8>>) -> R; }";
    const TYPES: &str = "#[derive(Debug)] pub struct R { a: u8, b: [u8; N] } pub const N: usize = 4;";

    #[test]
    fn formatting_comments_order_and_harmless_attributes_do_not_count() {
        let print_of_types = print(TRAIT, TYPES);
        let other_trait = "/// Docs.\n#[interface]\npub trait T {\n // c\n /// Docs.\n fn a(\n &self,\n x: u8,\n y: Vec<Vec<u8> >,\n ) -> R;\n}";
        let other_types = "pub const N: usize = 4; /* c */ #[derive(Debug, Clone)] #[must_use]\npub struct R {\n /// Docs.\n a: u8, b: [u8; N],\n}\n fn f() {} #[cfg(test)] mod tests { struct X; }";
        assert_eq!(print_of_types, print(other_trait, TYPES));
        assert_eq!(print_of_types, print(TRAIT, other_types));
        let in_module = format!("mod m {{ {TYPES} }}");
        assert_eq!(print_of_types, print(TRAIT, &in_module));
    }

    #[test]
    fn whatever_changes_an_encoding_counts() {
        let reference = print(TRAIT, TYPES);
        let traits = [
            "pub trait T { fn a(&self, x: u16, y: Vec<Vec<u8>>) -> R; }",
            "pub trait T { fn b(&self, x: u8, y: Vec<Vec<u8>>) -> R; }",
            "pub trait T { fn a(&self, x: u8, y: Vec<Vec<u8>>) -> R; fn b(&self); }",
            "pub trait U { fn a(&self, x: u8, y: Vec<Vec<u8>>) -> R; }",
        ];
        for changed in traits {
            assert_ne!(reference, print(changed, TYPES), "{changed}");
        }
        let types = [
            "pub struct R { b: [u8; N], a: u8 } pub const N: usize = 4;",
            "pub struct R { a: u8, b: [u8; N] } pub const N: usize = 5;",
            "#[serde(untagged)] pub struct R { a: u8, b: [u8; N] } pub const N: usize = 4;",
            "pub struct R { a: u8, b: [u8; N] } pub const N: usize = 4; enum E { A, B }",
            "pub struct R { a: u8, b: [u8; N] } pub const N: usize = 4; impl serde::Serialize for R {}",
        ];
        for changed in types {
            assert_ne!(reference, print(TRAIT, changed), "{changed}");
        }
    }
}

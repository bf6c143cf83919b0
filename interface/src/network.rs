//! Which addresses an enclave may use: rules of the measured manifest, written by people, applied inside.
//!
//! | rule | permits |
//! |---|---|
//! | `127.0.0.1:8443`, `[::1]:8443` | this address and port |
//! | `0.0.0.0:8443` | to listen on: all interfaces, which is what that address means |
//! | `0.0.0.0:0` | to listen on: a port of the host's choice |
//! | `10.0.0.0/8:443`, `[fd00::]/8:443` | addresses with this prefix |
//! | `10.1.2.3:*` | any port |
//! | `unix:/run/app.sock`, `unix:@name` | a Unix socket by its path, or by its name in Linux's abstract namespace |
//!
//! An IPv4 address within IPv6 (`::ffff:10.0.0.1`) counts as the IPv4 address it is.

use core::net::{IpAddr, SocketAddr};

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule<'a> {
    /// Internet addresses.
    Ip {
        /// The address.
        address: IpAddr,
        /// How many of its bits count.
        prefix: u8,
        /// The port; `None`: any.
        port: Option<u16>,
    },
    /// A Unix socket: its path, or `@` and its abstract name.
    Unix(&'a str),
}

/// An address that a program wants to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address<'a> {
    /// An Internet address.
    Ip(SocketAddr),
    /// A Unix socket's path, or `@` and its abstract name.
    Unix(&'a str),
}

/// Longest path of a Unix socket (`sun_path`, its NUL byte included, has 108 bytes).
const MAX_PATH: usize = 107;

impl<'a> Rule<'a> {
    /// Reads a rule.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &'a str) -> Result<Self, RuleError> {
        if let Some(path) = text.strip_prefix("unix:") {
            let sound = (path.starts_with('/') || path.starts_with('@'))
                && (2..=MAX_PATH).contains(&path.len())
                && !path.contains(['\0', '\n']);
            return if sound { Ok(Self::Unix(path)) } else { Err(RuleError::Path) };
        }
        let (host, port) = text.rsplit_once(':').ok_or(RuleError::Port)?;
        let port = match port {
            "*" => None,
            port => Some(port.parse().map_err(|_| RuleError::Port)?),
        };
        let (host, prefix) = match host.split_once('/') {
            Some((host, prefix)) => (host, Some(prefix.parse::<u8>().map_err(|_| RuleError::Prefix)?)),
            None => (host, None),
        };
        let address = match host.strip_prefix('[').map(|h| h.strip_suffix(']')) {
            Some(inner) => IpAddr::V6(inner.and_then(|h| h.parse().ok()).ok_or(RuleError::Address)?),
            None => IpAddr::V4(host.parse().map_err(|_| RuleError::Address)?),
        };
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(bits);
        if prefix > bits {
            return Err(RuleError::Prefix);
        }
        Ok(Self::Ip { address, prefix, port })
    }

    /// Does it permit the address?
    pub fn permits(&self, wanted: &Address<'_>) -> bool {
        match (self, wanted) {
            (Self::Ip { address, prefix, port }, Address::Ip(wanted)) => {
                let same = match (address.to_canonical(), wanted.ip().to_canonical()) {
                    (IpAddr::V4(a), IpAddr::V4(b)) => {
                        let bits = if address.is_ipv4() { *prefix } else { prefix.saturating_sub(96) };
                        differ(u128::from(a.to_bits() ^ b.to_bits()), 32) >= u32::from(bits)
                    }
                    (IpAddr::V6(a), IpAddr::V6(b)) => {
                        differ(a.to_bits() ^ b.to_bits(), 128) >= u32::from(*prefix)
                    }
                    _ => false,
                };
                same && port.is_none_or(|p| p == wanted.port())
            }
            (Self::Unix(path), Address::Unix(wanted)) => path == wanted,
            _ => false,
        }
    }
}

/// How many leading bits of `width` are equal, given the exclusive or.
fn differ(difference: u128, width: u32) -> u32 {
    difference.leading_zeros() - (128 - width)
}

/// Does one of a manifest's rules permit the address?
pub fn permitted(rules: &str, wanted: &Address<'_>) -> bool {
    crate::manifest::items(rules).any(|r| Rule::parse(r).is_ok_and(|r| r.permits(wanted)))
}

/// What is wrong with a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// No port, or not a number up to 65535.
    #[error("it must end with a colon and a port, or `*` for any port: \"127.0.0.1:8443\"")]
    Port,
    /// No address.
    #[error("names are not resolved: write an address, \"10.0.0.1:443\" or \"[::1]:443\"")]
    Address,
    /// Too long a prefix.
    #[error("the prefix must be a number up to 32 (IPv4) or 128 (IPv6): \"10.0.0.0/8:443\"")]
    Prefix,
    /// Not a usable path.
    #[error("a Unix socket is written `unix:/absolute/path` or `unix:@name`, with at most 107 bytes")]
    Path,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_permit_what_they_say() {
        let cases = [
            ("127.0.0.1:8443", "127.0.0.1:8443", true),
            ("127.0.0.1:8443", "127.0.0.1:8444", false),
            ("127.0.0.1:8443", "127.0.0.2:8443", false),
            ("127.0.0.1:8443", "[::ffff:127.0.0.1]:8443", true),
            ("0.0.0.0:8443", "127.0.0.1:8443", false),
            ("0.0.0.0/0:443", "9.9.9.9:443", true),
            ("0.0.0.0/0:443", "[::1]:443", false),
            ("10.0.0.0/8:*", "10.255.1.2:1", true),
            ("10.0.0.0/8:*", "11.0.0.0:1", false),
            ("[::1]:1", "[::1]:1", true),
            ("[fd00::]/8:443", "[fdff::1]:443", true),
            ("[fd00::]/8:443", "[fe00::1]:443", false),
            ("[::]/0:443", "[2001:db8::1]:443", true),
        ];
        for (rule, address, expected) in cases {
            let wanted = Address::Ip(address.parse().unwrap());
            assert_eq!(Rule::parse(rule).unwrap().permits(&wanted), expected, "{rule} and {address}");
        }
        assert!(permitted("a\nunix:/run/a", &Address::Unix("/run/a")));
        assert!(!permitted("unix:/run/a", &Address::Unix("/run/ab")));
        assert!(!permitted("", &Address::Ip("127.0.0.1:0".parse().unwrap())));
    }

    #[test]
    fn nonsense_is_no_rule() {
        for (rule, error) in [
            ("", RuleError::Port),
            ("127.0.0.1", RuleError::Port),
            ("127.0.0.1:65536", RuleError::Port),
            ("localhost:80", RuleError::Address),
            ("::1:80", RuleError::Address),
            ("[::1:80", RuleError::Address),
            ("10.0.0.0/33:80", RuleError::Prefix),
            ("10.0.0.0/x:80", RuleError::Prefix),
            ("unix:relative", RuleError::Path),
            ("unix:/", RuleError::Path),
        ] {
            assert_eq!(Rule::parse(rule), Err(error), "{rule}");
        }
    }
}

//! What is at which address, from which version of the interface on.

use axum::http::{Method, StatusCode, Uri};

use super::refusal::Refusal;
use crate::{
    engine::Operation,
    service::{AttestationType, TokenFormat},
};

/// The evidence inspector: address, type and text of everything it consists of.
pub(super) const PAGE: [(&str, &str, &str); 5] = [
    ("", "text/html; charset=utf-8", include_str!("../page/index.html")),
    ("style.css", "text/css; charset=utf-8", include_str!("../page/style.css")),
    ("page.js", "text/javascript; charset=utf-8", include_str!("../page/page.js")),
    ("picture.js", "text/javascript; charset=utf-8", include_str!("../page/picture.js")),
    ("icon.svg", "image/svg+xml", include_str!("../page/icon.svg")),
];

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Of the engine; how tokens are to look is in the query.
    Engine(Operation),
    Keys,
    OpenIdConfiguration,
    OpenApi,
    Metrics,
    Health,
    /// A part of the evidence inspector, by its place in [`PAGE`].
    Page(usize),
}

impl Route {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Engine(Operation::Attest(..)) => "attest",
            Self::Engine(Operation::GetPolicy(_)) => "get_policy",
            Self::Engine(Operation::SetPolicy(_)) => "set_policy",
            Self::Engine(Operation::ResetPolicy(_)) => "reset_policy",
            Self::Engine(Operation::Certificates) => "certificates",
            Self::Engine(Operation::ChangeCertificate { .. }) => "change_certificate",
            Self::Engine(Operation::TcbBaselines(_)) => "tcb_baselines",
            Self::Engine(Operation::Inspect) => "inspect",
            Self::Keys => "keys",
            Self::OpenIdConfiguration => "openid_configuration",
            Self::OpenApi => "openapi",
            Self::Metrics => "metrics",
            Self::Health => "health",
            Self::Page(_) => "page",
        }
    }

    /// Whether the address has versions.
    pub(super) fn is_versioned(self) -> bool {
        matches!(self, Self::Engine(operation) if operation != Operation::Inspect)
    }

    /// Whether it is for who manages policies.
    pub(super) fn is_management(self) -> bool {
        use Operation::{Certificates, ChangeCertificate, GetPolicy, ResetPolicy, SetPolicy};
        matches!(
            self,
            Self::Engine(
                GetPolicy(_) | SetPolicy(_) | ResetPolicy(_) | Certificates | ChangeCertificate { .. }
            )
        )
    }

    /// The first version that has it.
    pub(super) fn since(self) -> Version {
        use Operation::{Attest, GetPolicy, ResetPolicy, SetPolicy, TcbBaselines};
        match self {
            Self::Engine(TcbBaselines(_)) => Version::V2025,
            Self::Engine(Attest(kind, _) | GetPolicy(kind) | SetPolicy(kind) | ResetPolicy(kind)) => {
                match kind {
                    AttestationType::SgxEnclave | AttestationType::OpenEnclave => Version::V2020,
                    AttestationType::SevSnpVm => Version::V2022,
                    AttestationType::TdxVm => Version::V2025,
                }
            }
            _ => Version::V2020,
        }
    }

    pub(super) fn of(method: &Method, path: &str) -> Result<Self, Refusal> {
        let mut parts = path.trim_matches('/').split('/');
        let (first, second, third) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        let kind = |name: &str| {
            AttestationType::of(name).ok_or_else(|| {
                Refusal::new(
                    StatusCode::BAD_REQUEST,
                    "InvalidParameter",
                    format!(
                        "attestation type {:?} is not served; SgxEnclave, OpenEnclave, TdxVm and SevSnpVm are",
                        name.chars().take(40).collect::<String>()
                    ),
                )
            })
        };
        let nothing = || {
            Refusal::new(
                StatusCode::NOT_FOUND,
                "NotFound",
                "there is nothing at this address; see /openapi.json",
            )
        };
        let engine = Self::Engine;
        let (allowed, route): (&[Method], _) = match (first, second, third) {
            ("attest", Some(name), None) => {
                (&[Method::POST], engine(Operation::Attest(kind(name)?, TokenFormat::default())))
            }
            ("policies", Some(name), None) => match name.strip_suffix(":reset") {
                Some(name) => (&[Method::POST], engine(Operation::ResetPolicy(kind(name)?))),
                None if method == Method::PUT => (&[Method::PUT], engine(Operation::SetPolicy(kind(name)?))),
                None => (&[Method::GET, Method::PUT], engine(Operation::GetPolicy(kind(name)?))),
            },
            ("certificates", None, None) => (&[Method::GET], engine(Operation::Certificates)),
            ("certificates:add", None, None) => {
                (&[Method::POST], engine(Operation::ChangeCertificate { present: true }))
            }
            ("certificates:remove", None, None) => {
                (&[Method::POST], engine(Operation::ChangeCertificate { present: false }))
            }
            ("tcbbaselines", Some(name), None) => {
                (&[Method::GET], engine(Operation::TcbBaselines(kind(name)?)))
            }
            ("certs", None, None) => (&[Method::GET], Self::Keys),
            (".well-known", Some("openid-configuration"), None) => {
                (&[Method::GET], Self::OpenIdConfiguration)
            }
            ("openapi.json", None, None) => (&[Method::GET], Self::OpenApi),
            ("metrics", None, None) => (&[Method::GET], Self::Metrics),
            ("health", None, None) => (&[Method::GET], Self::Health),
            ("inspect", None, None) => (&[Method::POST], engine(Operation::Inspect)),
            ("inspector", part, None) => {
                let part = part.unwrap_or_default();
                let index = PAGE.iter().position(|(name, _, _)| *name == part);
                (&[Method::GET], Self::Page(index.ok_or_else(nothing)?))
            }
            _ => return Err(nothing()),
        };
        if allowed.contains(method) {
            return Ok(route);
        }
        let names: Vec<_> = allowed.iter().map(Method::as_str).collect();
        Err(Refusal {
            allow: Some(names.join(", ")),
            ..Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                format!("use {} at this address", names.join(" or ")),
            )
        })
    }
}

/// Versions of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    V2020,
    V2022,
    V2025,
}

impl Version {
    pub(super) const ALL: [(&str, Self); 3] =
        [("2020-10-01", Self::V2020), ("2022-08-01", Self::V2022), ("2025-06-01", Self::V2025)];

    pub(super) fn of(uri: &Uri) -> Result<Self, Refusal> {
        let names = "2020-10-01, 2022-08-01 and 2025-06-01";
        let refuse = |reason: String| Err(Refusal::new(StatusCode::BAD_REQUEST, "InvalidParameter", reason));
        let asked = query(uri, "api-version");
        let Some(asked) = asked else {
            return refuse(format!("the query has no api-version; there are {names}"));
        };
        match Self::ALL.into_iter().find(|(name, _)| *name == asked) {
            Some((_, version)) => Ok(version),
            None => refuse(format!(
                "api-version {:?} is not served; {names} are",
                asked.chars().take(40).collect::<String>()
            )),
        }
    }
}

/// The form of token the query asks for; Azure Attestation has one only.
pub(super) fn token_format(uri: &Uri) -> Result<TokenFormat, Refusal> {
    match query(uri, "tokenformat") {
        None => Ok(TokenFormat::Maa),
        Some(name) if name.eq_ignore_ascii_case("maa") => Ok(TokenFormat::Maa),
        Some(name) if name.eq_ignore_ascii_case("ear") => Ok(TokenFormat::Ear),
        Some(_) => Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "InvalidParameter",
            "tokenFormat in the query is neither maa nor ear",
        )),
    }
}

/// A value of the query, which none of ours needs escapes for.
fn query<'a>(uri: &'a Uri, wanted: &str) -> Option<&'a str> {
    uri.query().unwrap_or_default().split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.eq_ignore_ascii_case(wanted).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lead_where_they_should() {
        let route = |method: &str, path: &str| {
            Route::of(&method.parse().unwrap(), path).map_err(|refusal| refusal.status.as_u16())
        };
        let attest = Route::Engine(Operation::Attest(AttestationType::SgxEnclave, TokenFormat::Maa));
        assert_eq!(route("POST", "/attest/SgxEnclave"), Ok(attest));
        assert_eq!(route("POST", "/attest/sgxenclave/"), Ok(attest));
        assert_eq!(
            route("PUT", "/policies/TdxVm"),
            Ok(Route::Engine(Operation::SetPolicy(AttestationType::TdxVm)))
        );
        assert_eq!(
            route("POST", "/policies/TdxVm:reset"),
            Ok(Route::Engine(Operation::ResetPolicy(AttestationType::TdxVm)))
        );
        assert_eq!(
            route("POST", "/certificates:remove"),
            Ok(Route::Engine(Operation::ChangeCertificate { present: false }))
        );
        assert_eq!(route("GET", "/inspector"), Ok(Route::Page(0)));
        assert_eq!(route("POST", "/inspect"), Ok(Route::Engine(Operation::Inspect)));
        for (method, path, status) in [
            ("GET", "/attest/SgxEnclave", 405),
            ("GET", "/policies/TdxVm:reset", 405),
            ("DELETE", "/policies/TdxVm", 405),
            ("POST", "/attest/Tpm", 400),
            ("POST", "/attest", 404),
            ("POST", "/attest/SgxEnclave/more", 404),
            ("GET", "/", 404),
            ("GET", "/inspector/other.js", 404),
            ("POST", "/inspector", 405),
            ("GET", "/inspect", 405),
        ] {
            assert_eq!(route(method, path), Err(status), "{method} {path}");
        }
    }
}

//! Answers that are errors, in Azure Attestation's shape.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::{JSON, json_response};
use crate::{
    authentication::BearerError,
    engine::{RefusalKind, Refused},
};

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
    /// Methods that are served.
    pub(super) allow: Option<String>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), allow: None }
    }

    /// What the service is nothing without is away, and may come back.
    pub(super) fn unavailable() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            "the service cannot reach its store at present; try again later",
        )
    }
}

impl From<BearerError> for Refusal {
    fn from(error: BearerError) -> Self {
        let (status, code) = match error {
            BearerError::Issuer => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
            _ => (StatusCode::UNAUTHORIZED, "Unauthorized"),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let bad = StatusCode::BAD_REQUEST;
        let (status, code) = match refused.kind {
            RefusalKind::InvalidParameter | RefusalKind::NoCollateral => (bad, "InvalidParameter"),
            RefusalKind::InvalidOperation => (bad, "InvalidOperation"),
            RefusalKind::PolicyParsing => (bad, "PolicyParsingError"),
            RefusalKind::PolicyEvaluation => (bad, "PolicyEvaluationError"),
            RefusalKind::StoreUnavailable => {
                tracing::error!(error = %refused, "the store cannot be used");
                return Self::unavailable();
            }
            RefusalKind::Internal => {
                // What exactly is for the log: paths are no business of callers.
                tracing::error!(error = %refused, "internal error");
                return Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "InternalError",
                    "the service failed at this request; its log says why",
                );
            }
        };
        Self::new(status, code, refused.message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({ "error": { "code": self.code, "message": self.message } });
        let mut response = json_response(self.status, JSON, body.to_string());
        let headers = response.headers_mut();
        if let Some(allow) = self.allow.and_then(|allow| allow.parse().ok()) {
            headers.insert(header::ALLOW, allow);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}
